"""Training steps of transformers' BERT and BART on this CPU: seconds of one step, to hold `lm bench` against.

    .venv-peers/bin/python tests/peers_speed.py bert '{"vocab": 4097, "width": 128, "depth": 4, "heads": 4}' 64 16 20

prints the medians over steps of the wall and CPU seconds for 16 rows of 64 random tokens, in float32, with AdamW and
clipping. depth is that of each half of BART.
"""
import json
import statistics
import sys
import time

import torch
import transformers


def bert(vocab, width, depth, heads):
    return transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))


def bart(vocab, width, depth, heads):
    return transformers.BartForConditionalGeneration(transformers.BartConfig(
        vocab_size=vocab, d_model=width, encoder_layers=depth, decoder_layers=depth, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, dropout=0.2))


def main(family, sizes, context, batch, steps):
    torch.manual_seed(0)
    sizes = json.loads(sizes)
    model = {'bert': bert, 'bart': bart}[family](**sizes).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    ids = torch.randint(sizes['vocab'], (int(batch), int(context)))
    times = []
    for _ in range(int(steps) + 3):
        begun = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        times.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    wall, cpu = (statistics.median(column) for column in zip(*times[3:], strict=True))
    print(json.dumps({'parameters': sum(p.numel() for p in model.parameters()), 'step_seconds': round(wall, 6),
                      'cpu_seconds': round(cpu, 6)}))


if __name__ == '__main__':
    main(*sys.argv[1:])
