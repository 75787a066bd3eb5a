"""Names that the cluster and kas both know."""

from __future__ import annotations

ADMIN = "e2e:admin"
"""The user that kas impersonates in the cluster for the tests' main user; bound to cluster-admin."""

DOMAIN = "e2e.test"
"""Below it, agents have host names: ``<agent>.k8s.e2e.test``."""

READER = "e2e-reader"
"""A ClusterRole that may read pods and configmaps."""
