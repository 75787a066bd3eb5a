"""agentk: runs in the cluster, dials kas, and serves the requests that come back through the tunnel."""
