"""The cluster: what reads manifests, shares out concepts, keeps results and shows them."""
