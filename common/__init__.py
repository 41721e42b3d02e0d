"""Code that client and server share: settings, data, models and the wire."""

if __name__ != "wardround.common":
    raise ImportError(
        "import wardround.common: as 'common' it would be loaded a second time"
    )
