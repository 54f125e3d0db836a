"""Whisper in numpy: the reader of CTranslate2's model.bin, the log-mel spectrogram, the encoder, and an exact decoder. For
tools/whisper_prepare.py.

Format  model.bin (binary version 6, little endian): version u32, name of the specification, revision u32, number of variables u32;
        of each variable its name, dimensions u8, their sizes u32, type u8, bytes u32, the bytes; then the number of aliases u32, and of
        each its name and the name of the variable that it stands for. A string is its length u16, a final zero counted, and its bytes.
Source  Whisper (arXiv 2212.04356).
"""

import math
import struct

import numpy as np

RATE = 16000  # samples a second
WINDOW = 30 * RATE  # samples that the encoder reads at once
N_FFT, HOP, MELS = 400, 160, 80
END, START, PREVIOUS, NO_TIMESTAMPS = 50256, 50257, 50360, 50362  # tokens of the English models
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_model(path):
    """The variables of a model.bin: {name: array}, floats in f32."""
    data = path.read_bytes()
    at = 0

    def number(kind):
        nonlocal at
        (value,) = struct.unpack_from("<" + kind, data, at)
        at += struct.calcsize(kind)
        return value

    def string():
        nonlocal at
        size = number("H")
        at += size
        return data[at - size : at - 1].decode()

    version, name, _ = number("I"), string(), number("I")
    if version != 6 or name != "WhisperSpec":
        raise SystemExit(f"{path}: binary version {version} of {name}; expected version 6 of WhisperSpec")
    variables = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        values = np.frombuffer(data, TYPES[kind], size // np.dtype(TYPES[kind]).itemsize, at).reshape(shape)
        variables[name] = values.astype(np.float32) if values.dtype == np.float16 else values
        at += size
    for _ in range(number("I")):
        alias, name = string(), string()
        variables[alias] = variables[name]
    if at != len(data):
        raise SystemExit(f"{path}: {len(data) - at} bytes are left behind the last alias")
    return variables


def mel_filters():
    """[80, 201]: triangles whose corners are evenly spaced on Slaney's mel scale from 0 to 8,000 Hz, each of area 1."""
    knee, step = 1000.0, 200.0 / 3  # linear below, logarithmic above
    log_step = math.log(6.4) / 27
    top = knee / step + math.log(RATE / 2 / knee) / log_step
    mels = np.linspace(0, top, MELS + 2)
    corners = np.where(mels < knee / step, mels * step, knee * np.exp((mels - knee / step) * log_step))
    bins = np.arange(N_FFT // 2 + 1) * RATE / N_FFT
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)


def log_mel(samples):
    """samples of at most 30 s -> [80, 3000]"""
    padded = np.zeros(WINDOW)
    padded[: len(samples)] = samples
    padded = np.pad(padded, N_FFT // 2, mode="reflect")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][: WINDOW // HOP]
    power = np.abs(np.fft.rfft(frames * hann, axis=1)) ** 2
    mel = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    return ((np.maximum(mel, mel.max() - 8) + 4) / 4).astype(np.float32)


def erf(x):
    """By the formula 7.1.26 of Abramowitz and Stegun in f64; off by 1.5e-7 at most."""
    z = np.abs(x.astype(np.float64))
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.copysign(1 - series * np.exp(-z * z), x)


def gelu(x):
    return (x * 0.5 * (1 + erf(x / math.sqrt(2)))).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Model:
    """The variables of a model by their names, and what the encoder and the decoder share."""

    def __init__(self, variables):
        self.of = variables
        self.heads = int(variables["decoder/num_heads"])
        self.encoder_layers, self.decoder_layers = (
            sum(name.startswith(f"{part}/layer_") and name.endswith("/ffn/linear_0/bias") for name in variables)
            for part in ("encoder", "decoder")
        )
        self.embedding = variables["decoder/embeddings/weight"]
        self.width = self.embedding.shape[1]

    def norm(self, name, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * self.of[name + "/gamma"] + self.of[name + "/beta"]

    def linear(self, name, x):
        return x @ self.of[name + "/weight"].T + self.of[name + "/bias"]

    def feed_forward(self, name, x):
        inner = gelu(self.linear(name + "/linear_0", self.norm(name + "/layer_norm", x)))
        return self.linear(name + "/linear_1", inner)

    def attend(self, q, k, v, first=None):
        """q [n, D], k and v [m, D] -> [n, D]. Row i sees keys up to first + i; without `first`, all of them."""
        split = lambda rows: rows.reshape(len(rows), self.heads, -1).transpose(1, 0, 2)
        q, k, v = split(q), split(k), split(v)
        scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(q.shape[2]))
        if first is not None:
            unseen = np.arange(k.shape[1])[None, :] > first + np.arange(q.shape[1])[:, None]
            scores[:, unseen] = -np.inf
        return (softmax(scores) @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)

    def encode(self, mel):
        """mel [80, 3000] -> the encoder's output [1500, D]"""
        x = mel.T
        for name, stride in (("encoder/conv1", 1), ("encoder/conv2", 2)):
            weight = self.of[name + "/weight"]  # [out, in, 3]
            padded = np.pad(x, ((1, 1), (0, 0)))
            windows = np.concatenate([padded[i : i + len(x)] for i in range(3)], axis=1)[::stride]  # [n, 3 in]
            x = gelu(windows @ weight.transpose(2, 1, 0).reshape(-1, len(weight)) + self.of[name + "/bias"])
        x = x + self.of["encoder/position_encodings/encodings"]
        for i in range(self.encoder_layers):
            name = f"encoder/layer_{i}"
            rows = self.linear(name + "/self_attention/linear_0", self.norm(name + "/self_attention/layer_norm", x))
            q, k, v = np.split(rows, 3, axis=1)
            x = x + self.linear(name + "/self_attention/linear_1", self.attend(q, k, v))
            x = x + self.feed_forward(name + "/ffn", x)
        return self.norm("encoder/layer_norm", x)


class Decoder:
    """One window's decoder, with exact K and V. `hidden` takes the next tokens, one or many."""

    def __init__(self, model, encoded):
        self.model, self.size = model, 0
        name = "decoder/layer_{}/attention/linear_1"
        self.cross = [np.split(model.linear(name.format(i), encoded), 2, axis=1) for i in range(model.decoder_layers)]
        empty = np.zeros((0, model.width), np.float32)
        self.own = [[empty, empty] for _ in range(model.decoder_layers)]

    def hidden(self, tokens):
        """-> the states [n, D] whose products with the embedding are the logits"""
        model, first = self.model, self.size
        self.size += len(tokens)
        x = model.embedding[tokens] + model.of["decoder/position_encodings/encodings"][first : self.size]
        for i in range(model.decoder_layers):
            name = f"decoder/layer_{i}"
            rows = model.linear(name + "/self_attention/linear_0", model.norm(name + "/self_attention/layer_norm", x))
            q, k, v = np.split(rows, 3, axis=1)
            self.own[i] = [np.concatenate(pair) for pair in zip(self.own[i], (k, v))]
            x = x + model.linear(name + "/self_attention/linear_1", model.attend(q, *self.own[i], first))
            q = model.linear(name + "/attention/linear_0", model.norm(name + "/attention/layer_norm", x))
            x = x + model.linear(name + "/attention/linear_2", model.attend(q, *self.cross[i]))
            x = x + model.feed_forward(name + "/ffn", x)
        return model.norm("decoder/layer_norm", x)

    def greedy(self, prompt, suppressed, suppressed_first, most):
        """The most likely tokens behind a prompt, up to the end of the text, which is not returned."""
        row, out = self.hidden(prompt)[-1], []
        while len(out) < most:
            logits = self.model.embedding @ row
            logits[suppressed] = -np.inf
            if not out:
                logits[suppressed_first] = -np.inf
            token = int(logits.argmax())
            if token == END:
                break
            out.append(token)
            row = self.hidden([token])[-1]
        return out
