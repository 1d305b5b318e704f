"""Wing 2, the policy: engines that sample tokens and the gateway in front of them."""
