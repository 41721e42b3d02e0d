"""The coordinator's part: rounds, engines, deployment, sweeps and reports."""

if __name__ != "wardround.server":
    raise ImportError(
        "import wardround.server: as 'server' it would be loaded a second time"
    )
