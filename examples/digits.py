"""A small network on scikit-learn's digits, trained for 300 Adam steps with the pixels as they come, 0 to 16.

wellcond examine examples/digits.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import wellcond as wc


def setup() -> wc.TrainingRun:
    torch.manual_seed(0)
    digits = load_digits()
    X = torch.tensor(digits.data, dtype=torch.float32)
    y = torch.tensor(digits.target)
    loader = DataLoader(TensorDataset(X, y), batch_size=128, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    steps = 0
    while steps < 300:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()
            optimizer.step()
            steps += 1
    return wc.TrainingRun(model, loss_fn, loader, optimizer)
