"""fedopt's strategies with one mistake each."""

from __future__ import annotations

import torch

from fedopt.server import FedAvg, Scaffold
from fedopt.server.adaptive import FedAdam
from fedopt.server.feddyn import FedDyn
from fedopt.server.fednova import FedNova
from fedopt.server.personal import FedPer
from fedopt.server.robust import TrimmedMean


class HalfControls(Scaffold):
    """c moves by half of what the clients' control variates do."""

    def server_step(self, parameters, sums):
        before = self.control_variate
        new = super().server_step(parameters, sums)
        self.control_variate = (self.control_variate + before) / 2
        return new


class CohortControls(Scaffold):
    """c <- c + mean over the cohort, without |S| / N."""

    def server_step(self, parameters, sums):
        before = self.control_variate
        new = super().server_step(parameters, sums)
        self.control_variate = before + sums.mean("control_delta")
        return new


class DoesNotTrim(TrimmedMean):
    """The mean of all."""

    def robust_mean(self, updates):
        return updates.coordinates(lambda rows: rows.mean(0))


class BiasCorrected(FedAdam):
    """Adam with the correction of both moments, which the paper's has not."""

    rounds = 0

    def server_step(self, parameters, sums):
        self.rounds += 1
        before = parameters.clone()
        step = super().server_step(parameters, sums) - before
        options = self.options
        root = (1 - options.beta2**self.rounds) ** 0.5
        return before + step * root / (1 - options.beta1**self.rounds)


class ForgetsH(FedDyn):
    """The server leaves h out."""

    def server_step(self, parameters, sums):
        super().server_step(parameters, sums)
        return parameters + sums.mean()


class NominalWork(FedNova):
    """tau_eff as if all clients did as much as the first."""

    def mean_update(self, sums):
        return sums.mean() * self.federation.lr * 1.0


class SharesTheHead(FedPer):
    """What the clients keep reaches the server all the same."""

    def server_step(self, parameters, sums):
        return super().server_step(parameters, sums) + 0.01 * torch.ones_like(parameters)


class HalfStep(FedAvg):
    """A mean update that is halved."""

    def mean_update(self, sums):
        return super().mean_update(sums) / 2
