"""A site's part: what it trains, allows, answers and records."""

if __name__ != "wardround.client":
    raise ImportError(
        "import wardround.client: as 'client' it would be loaded a second time"
    )
