"""A byte-level GPT in plain PyTorch, and text to train it on. Knows nothing of Sluice."""

import pathlib
import sysconfig

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 256


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual (GPT-2's block); heads of about 64."""

    def __init__(self, hidden):
        super().__init__()
        self.heads = next(n for n in range(max(1, hidden // 64), 0, -1) if hidden % n == 0)
        self.norm1 = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.proj = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        batch, length, hidden = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, hidden))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Embedding(nn.Module):
    """Bytes and their positions."""

    def __init__(self, length, hidden):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, hidden)
        self.position = nn.Embedding(length, hidden)

    def forward(self, tokens):
        return self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))


class GPT(nn.Module):
    """forward(tokens, targets), both of shape (batch, length) and int64, gives the mean loss in nats."""

    def __init__(self, layers, hidden, length):
        super().__init__()
        self.embedding = Embedding(length, hidden)
        self.blocks = nn.ModuleList(Block(hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                deep = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if deep else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


class Text:
    """Random windows of a text's bytes. Without a file: the sources of the Python that runs this."""

    def __init__(self, path, seed):
        if path is not None:
            data = pathlib.Path(path).read_bytes()
        else:
            library = pathlib.Path(sysconfig.get_path("stdlib"))
            data = b"".join(file.read_bytes() for file in sorted(library.glob("*.py")))
        self._bytes = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._random = torch.Generator().manual_seed(seed)

    def batch(self, batch, length):
        """(tokens, targets), each of shape (batch, length)."""
        last = len(self._bytes) - length - 1
        if last < 0:
            raise ValueError(f"the text has {len(self._bytes)} bytes; at least {length + 1} are needed")
        starts = torch.randint(0, last + 1, (batch,), generator=self._random)
        windows = torch.stack([self._bytes[s : s + length + 1] for s in starts]).long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
