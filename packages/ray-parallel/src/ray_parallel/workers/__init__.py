"""Ray actors that share one copy of the weights and are supervised as one group."""
