"""A Flower app whose updates only leave in a sum. `flower-supernode --node-config` names each node's folder."""
