"""The online half: rollouts in through a log, versions out, and the ports that speak of both."""
