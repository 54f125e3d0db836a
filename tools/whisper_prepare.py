#!/usr/bin/env python3
"""tools/whisper_prepare.py MODEL_FOLDER TEXT OUT [--windows N] [--speed N]: what whisper-caches reads. tools/whisper calls it.

A text is spoken by espeak-ng, whole sentences in windows of at most 30 s, and transcribed by Whisper in numpy: each window greedily,
behind the transcript of the window before as Whisper does it. The file OUT gets the decoder's weights, and of each window the
encoder's output and the tokens.

Format of OUT, little endian: "XQWHISP1", number of arrays u32, of each: length of its name u32, the name, type u32 (0 f32, 1 i32),
dimensions u32, their sizes u64, the values; at the end the CRC-32 u32 of all before it.

    heads [1] i32                   query and key heads of a layer
    embedding [V, D]                also what makes logits
    positions [448, D]
    norm.gain, norm.bias [D]        before the logits
    layer.I.self.norm.gain, ...     of decoder layer I: self, cross, feed_forward
    layer.I.self.q, k, v, o [D, D]  likewise cross; W as checkpoints store it; with .bias [D] (k has none)
    layer.I.feed_forward.up, down   with .bias
    window.J.x [1500, D]            the encoder's output
    window.J.tokens [n] i32         prompt and transcript, the end of the text included
    window.J.first [1] i32          how many of them are the prompt
    check.positions [m] i32         of window 0, and
    check.logits [m, V]             the decoder's logits there
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import wave
import zlib
from pathlib import Path

import numpy as np

from whisper_model import END, NO_TIMESTAMPS, PREVIOUS, RATE, START, WINDOW, Decoder, Model, log_mel, read_model

MOST_PROMPT = 223  # tokens of the window before
PAUSE = RATE // 3  # samples of silence behind a sentence


def progress(text):
    end = "\r\033[K" if sys.stderr.isatty() else "\n"
    sys.stderr.write(f"{end if sys.stderr.isatty() else ''}{text}{'' if sys.stderr.isatty() else end}")
    sys.stderr.flush()


def sentences(text):
    """Sentences of prose; what would not fit into a window is cut at a comma. Headings become sentences."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])[\"']?\s+(?=[\"'A-Z])", " ".join(paragraph.split())):
            words = sentence.split()
            while len(words) > 60:
                cut = next((i + 1 for i in range(58, 20, -1) if words[i].endswith((",", ";", ":"))), 50)
                yield " ".join(words[:cut])
                words = words[cut:]
            if words:
                yield " ".join(words)


def resample(samples, rate):
    """To 16 kHz: the spectrum is cut at 8 kHz."""
    spectrum = np.fft.rfft(samples)
    size = len(samples) * RATE // rate
    return np.fft.irfft(spectrum[: size // 2 + 1], size) * (size / len(samples))


def speak(sentence, speed):
    """Samples at 16 kHz, -1 to 1."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["espeak-ng", "-v", "en-us", "-s", str(speed), "-w", file.name, "--stdin"], input=sentence.encode(), check=True)
        with wave.open(file.name) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float64) / 32768
            return resample(samples, sound.getframerate())


def spoken_windows(text, count, speed):
    """(samples, words spoken) of up to `count` windows of whole sentences."""
    samples, words, made = [], [], 0
    for sentence in sentences(text):
        spoken = np.concatenate([speak(sentence, speed), np.zeros(PAUSE)])
        if samples and sum(map(len, samples)) + len(spoken) > WINDOW:
            yield np.concatenate(samples), " ".join(words)
            samples, words, made = [], [], made + 1
            if made == count:
                return
        samples.append(spoken)
        words.append(sentence)
    if samples:
        yield np.concatenate(samples), " ".join(words)


def byte_letters():
    """What stands for a byte in the vocabulary of GPT-2: {letter: byte}."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def text_of(tokens, vocabulary, letters):
    return bytes(letters[letter] for token in tokens if token < END for letter in vocabulary[token]).decode(errors="replace")


def words_of(text):
    return re.sub(r"[^a-z0-9' ]", " ", text.lower()).replace("'", "").split()


def word_errors(spoken, heard):
    """Words to insert, delete or replace (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(spoken, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            before, row[j] = row[j], min(before + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


class Writer:
    """The arrays of the file."""

    def __init__(self):
        self.parts, self.count = [], 0

    def add(self, name, values, kind=np.float32):
        values = np.ascontiguousarray(values, kind)
        sizes = np.array(values.shape, "<u8").tobytes()
        head = np.array([len(name)], "<u4").tobytes() + name.encode()
        head += np.array([0 if kind == np.float32 else 1, values.ndim], "<u4").tobytes() + sizes
        self.parts += [head, values.tobytes()]
        self.count += 1

    def write(self, path):
        checksum = 0
        part = path.with_name(path.name + ".part")
        with open(part, "wb") as file:
            for piece in [b"XQWHISP1" + np.array([self.count], "<u4").tobytes(), *self.parts]:
                checksum = zlib.crc32(piece, checksum)
                file.write(piece)
            file.write(np.array([checksum], "<u4").tobytes())
        part.replace(path)


def add_weights(writer, model):
    of, d = model.of, model.width
    writer.add("heads", [model.heads], np.int32)
    writer.add("embedding", model.embedding)
    writer.add("positions", of["decoder/position_encodings/encodings"])

    def norm(to, name):
        writer.add(to + ".gain", of[name + "/gamma"])
        writer.add(to + ".bias", of[name + "/beta"])

    def matrix(to, name, rows=slice(None), bias=True):
        writer.add(to, of[name + "/weight"][rows])
        if bias:
            writer.add(to + ".bias", of[name + "/bias"][rows])
        elif np.any(of[name + "/bias"][rows]):
            raise SystemExit(f"{name}: keys have a bias, and those of Whisper have none")

    norm("norm", "decoder/layer_norm")
    for i in range(model.decoder_layers):
        name, to = f"decoder/layer_{i}", f"layer.{i}"
        for part, of_part in (("self", "self_attention"), ("cross", "attention"), ("feed_forward", "ffn")):
            norm(f"{to}.{part}.norm", f"{name}/{of_part}/layer_norm")
        first, second, third = (slice(j * d, (j + 1) * d) for j in range(3))
        matrix(to + ".self.q", name + "/self_attention/linear_0", first)
        matrix(to + ".self.k", name + "/self_attention/linear_0", second, bias=False)
        matrix(to + ".self.v", name + "/self_attention/linear_0", third)
        matrix(to + ".self.o", name + "/self_attention/linear_1")
        matrix(to + ".cross.q", name + "/attention/linear_0")
        matrix(to + ".cross.k", name + "/attention/linear_1", first, bias=False)
        matrix(to + ".cross.v", name + "/attention/linear_1", second)
        matrix(to + ".cross.o", name + "/attention/linear_2")
        matrix(to + ".feed_forward.up", name + "/ffn/linear_0")
        matrix(to + ".feed_forward.down", name + "/ffn/linear_1")


def add_check(writer, model, encoded, tokens, first):
    """The exact logits of some positions, from tokens that are fed at once."""
    positions = np.arange(first - 1, len(tokens) - 1, 8)
    hidden = Decoder(model, encoded).hidden(tokens[:-1])
    writer.add("check.positions", positions, np.int32)
    writer.add("check.logits", hidden[positions] @ model.embedding.T)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with model.bin, config.json and vocabulary.txt")
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--windows", type=int, default=1000, help="at most so many windows of 30 s")
    parser.add_argument("--speed", type=int, default=150, help="words a minute")
    o = parser.parse_args()
    config = json.loads((o.folder / "config.json").read_text())
    vocabulary = (o.folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")
    model, letters = Model(read_model(o.folder / "model.bin")), byte_letters()
    suppressed = np.array([*config["suppress_ids"], *range(NO_TIMESTAMPS, len(model.embedding))])
    suppressed_first = np.array(config["suppress_ids_begin"])

    progress("speech")
    windows = list(spoken_windows(o.text.read_text(encoding="utf-8"), o.windows, o.speed))
    writer, before, errors, spoken_words, heard_tokens = Writer(), [], 0, 0, 0
    add_weights(writer, model)
    for j, (samples, spoken) in enumerate(windows):
        progress(f"window {j + 1} of {len(windows)}")
        encoded = model.encode(log_mel(samples))
        prompt = [PREVIOUS, *before[-MOST_PROMPT:]] if before else []
        prompt += [START, NO_TIMESTAMPS]
        heard = Decoder(model, encoded).greedy(prompt, suppressed, suppressed_first, 448 - len(prompt) - 1)
        tokens = [*prompt, *heard, END]
        writer.add(f"window.{j}.x", encoded)
        writer.add(f"window.{j}.tokens", tokens, np.int32)
        writer.add(f"window.{j}.first", [len(prompt)], np.int32)
        if j == 0:
            add_check(writer, model, encoded, tokens, len(prompt))
        text = text_of(heard, vocabulary, letters)
        wrong = word_errors(words_of(spoken), words_of(text))
        if j < 2:
            print(f"spoken: {spoken}\nheard: {text.strip()}\n")
        errors, spoken_words, heard_tokens = errors + wrong, spoken_words + len(words_of(spoken)), heard_tokens + len(heard)
        before = [*before, *heard]
    writer.write(o.out)
    progress("")
    seconds = sum(len(samples) for samples, _ in windows) / RATE
    print(f"{o.out.name}: {len(windows)} windows, {seconds / 60:.1f} minutes of speech, {spoken_words} words, {heard_tokens} tokens")
    print(f"word error rate: {100 * errors / max(spoken_words, 1):.1f} %")
    if errors > spoken_words / 2:
        raise SystemExit("more than half of the words were not recognised: something is wrong here")


if __name__ == "__main__":
    main()
