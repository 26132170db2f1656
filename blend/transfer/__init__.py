"""`blend transfer`: an exported blend on networks and at reductions that it was not searched for."""
