"""What the search raises."""


class SearchError(Exception):
    """Base of every error raised by `search`; the message names parameter, rule and value."""


class SearchValueError(SearchError, ValueError):
    """A value given to the search is wrong."""
