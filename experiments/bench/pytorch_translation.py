"""The model and updates of the bench row "training transformer-tiny" in PyTorch, on the very batch
shapes that the bench trained on. Modules of its own around scaled_dot_product_attention: one
product for queries, keys and values, causal attention without a mask in memory, and Adam fused.
"""
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, FFN, LAYERS, VOCABULARY, DROPOUT = 128, 4, 256, 4, 10000, 0.3


class Attention(nn.Module):
    def __init__(self, crossing):
        super().__init__()
        self.crossing = crossing
        self.project = nn.ModuleList(
            [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)] if crossing
            else [nn.Linear(WIDTH, 3 * WIDTH)])
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, memory, mask):
        """mask: (B, 1, 1, S) valid keys; None: causal."""
        if self.crossing:
            parts = (self.project[0](x), *self.project[1](memory).chunk(2, -1))
        else:
            parts = self.project[0](x).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Post-norm; a decoder layer also attends to the encoder's output."""

    def __init__(self, decoder):
        super().__init__()
        self.attentions = nn.ModuleList([Attention(crossing) for crossing in
                                         ((False, True) if decoder else (False,))])
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, FFN), nn.ReLU(), nn.Dropout(DROPOUT),
                                          nn.Linear(FFN, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3 if decoder else 2)])
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x, memory, masks):
        for attention, norm, mask in zip(self.attentions, self.norms, masks):
            x = norm(x + self.dropout(attention(x, memory, mask)))
        return self.norms[-1](x + self.dropout(self.feed_forward(x)))


class Translator(nn.Module):
    def __init__(self, longest):
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        nn.init.normal_(self.table.weight, std=WIDTH**-0.5)
        self.register_buffer("positions", torch.randn(longest, WIDTH))
        self.dropout = nn.Dropout(DROPOUT)
        self.encoder = nn.ModuleList([Layer(False) for _ in range(LAYERS)])
        self.decoder = nn.ModuleList([Layer(True) for _ in range(LAYERS)])

    def embed(self, ids):
        return self.dropout(self.table(ids) * WIDTH**0.5 + self.positions[:ids.shape[1]])

    def forward(self, source, target):
        # Padding stands behind the tokens, so a causal decoder needs no mask of its own.
        valid = (source != 0)[:, None, None, :]
        x = self.embed(source)
        for layer in self.encoder:
            x = layer(x, None, (valid,))
        y = self.embed(target)
        for layer in self.decoder:
            y = layer(y, x, (None, valid))
        return y @ self.table.weight.t()


def padded(lengths):
    """Random ids from 4 on, padded with 0."""
    lengths = torch.tensor(lengths)
    ids = torch.randint(4, VOCABULARY, (len(lengths), int(lengths.max())))
    return ids * (torch.arange(ids.shape[1]) < lengths[:, None])


def translation_work(batches):
    """One update on each of the bench's batches: [{"source": lengths, "target": lengths}]."""

    def build(device):
        data = [[padded(batch[side]).to(device) for side in ("source", "target", "target")]
                for batch in batches]
        model = Translator(max(max(batch[side]) for batch in batches
                               for side in ("source", "target"))).to(device)
        adam = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-8,
                                fused=True)

        def run():
            for source, target, wanted in data:
                adam.zero_grad(set_to_none=True)
                logits = model(source, target)
                F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=0,
                                label_smoothing=0.1).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                adam.step()

        return run

    return build
