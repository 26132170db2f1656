"""What the search raises."""


class SearchError(Exception):
    """Base of every error raised by `search`; the message names parameter, rule and value."""


class UnfitWorker(SearchError):
    """What a function raises in a worker that can run no item at all: that is no item's fault."""


class SearchValueError(SearchError, ValueError):
    """A value given to the search is wrong."""
