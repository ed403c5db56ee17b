"""The benchmark's models in PyTorch, as one writes them there, with weights that Keras's `get_weights()` gave."""

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-3  # Keras's default in both normalizations


class Mlp(nn.Module):
    def __init__(self, inputs, widths, classes):
        super().__init__()
        sizes = [inputs, *widths]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, widths, strict=False))
        self.logits = nn.Linear(widths[-1], classes)

    def forward(self, x):
        for layer in self.hidden:
            x = functional.relu(layer(x))
        return self.logits(x)


class Cnn(nn.Module):
    def __init__(self, size, channels, depth, classes):
        super().__init__()
        layers, before = [], 3
        for stage, width in enumerate(channels):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(nn.Conv2d(before, width, 3, stride, padding=1, bias=False))
                layers += [nn.BatchNorm2d(width, eps=EPSILON, momentum=0.01), nn.ReLU()]
                before = width
        self.body, self.logits = nn.Sequential(*layers), nn.Linear(before, classes)

    def forward(self, x):
        return self.logits(self.body(x).mean(dim=(2, 3)))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        # (batch, length, width) -> (batch, length, width)
        split = [part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        return self.out(functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.before_attention = nn.LayerNorm(width, eps=EPSILON)
        self.attention = Attention(width, heads)
        self.before_hidden = nn.LayerNorm(width, eps=EPSILON)
        self.hidden, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.before_attention(x))
        return x + self.out(functional.gelu(self.hidden(self.before_hidden(x))))


class Text(nn.Module):
    def __init__(self, length, words, width, blocks, classes, heads=4):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm, self.logits = nn.LayerNorm(width, eps=EPSILON), nn.Linear(width, classes)

    def forward(self, ids):
        return self.logits(self.norm(self.blocks(self.embedding(ids))).mean(dim=1))


KINDS = {"mlp": Mlp, "cnn": Cnn, "text": Text}


def build(kind, options, weights):
    """A model with the weights, in the order and the layouts in which Keras keeps them."""
    model, weights = KINDS[kind](**options), iter(weights)
    with torch.no_grad():
        for module in model.modules():  # in the order in which they were made
            for target, layout in _tensors_of(module):
                array = layout(torch.from_numpy(next(weights)), target)
                target.copy_(array)
    if next(weights, None) is not None:
        raise ValueError(f"{kind} {options} has fewer weights than were given.")
    return model


def _tensors_of(module):
    """`(tensor, how its values come from Keras's array)` of a module's own tensors, in Keras's order."""
    if isinstance(module, nn.Linear):
        return [(module.weight, lambda array, target: array.reshape(target.shape[::-1]).T), (module.bias, _reshaped)]
    if isinstance(module, nn.Conv2d):
        return [(module.weight, lambda array, target: array.permute(3, 2, 0, 1))]
    if isinstance(module, nn.BatchNorm2d):
        return [(t, _reshaped) for t in (module.weight, module.bias, module.running_mean, module.running_var)]
    if isinstance(module, nn.LayerNorm):
        return [(module.weight, _reshaped), (module.bias, _reshaped)]
    return [(module.weight, _reshaped)] if isinstance(module, nn.Embedding) else []


def _reshaped(array, target):
    return array.reshape(target.shape)
