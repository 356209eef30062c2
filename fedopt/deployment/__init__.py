"""What it takes to run on real clients: keys, folders, processes or containers, submission.

What runs on them is elsewhere: the server's side in `fedopt.deployed` and `fedopt.server`, a
client's in `fedopt.client`. Nothing here touches examples but `split`, which makes folders for
trials out of a simulated population.
"""
