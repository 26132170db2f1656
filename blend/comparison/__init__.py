"""`blend compare`: criteria against each other on one network, without a search; in words, as a picture, as a page."""
