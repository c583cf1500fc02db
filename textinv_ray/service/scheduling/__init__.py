"""Who learns which concept: the scheduler actor, its leases, and the client that talks to it."""
