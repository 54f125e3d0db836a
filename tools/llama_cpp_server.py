"""A scripted session of llama-server, and how far its answers are from those of another one. tools/llama_cpp_prove.py plays it.

The first session is free: its greedy answers are the script. In all others a grammar admits these tokens alone, so that every session
sees the same tokens, whatever it would have said itself; what is compared is the logarithm of the probability that it gave them.
"""

import http.client
import json
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

CONTEXT = 256  # tokens of a slot
SLOTS = 8
SETTINGS = {"XQUANT_RECENT": "32"}  # most rows are codes
MODES = {
    # Slots of their own, asked for by number.
    "slots": ["-no-kvu", "-c", SLOTS * CONTEXT],
    # As llama-server does by default: it chooses the slots, and moves idle ones to its cache of prompts and back.
    "unified": ["-kvu", "--kv-unified-per-slot", CONTEXT],
}
PREFIX = (
    "The following is a conversation with a librarian who has worked in a small town for thirty years. The librarian knows the history"
    " of science, geography, cooking and music, answers in plain words, gives an example where one helps, and says so when a question"
    " has no answer. The library closes at six; until then visitors come to the desk one after the other, and every one of them"
    " gets the time that the question needs. Nobody is sent away.\n\n"
)
QUESTIONS = [
    "How does a steam engine turn heat into motion?",
    "Which spices belong into a good lentil soup?",
    "Why did Magellan sail to the west?",
    "What makes a violin sound warm?",
    "When do swallows leave for the south?",
    "Who invented the printing press, and what for?",
    "Is there a way to keep bread fresh for a week?",
    "What do the rings of Saturn consist of?",
]
# They do not begin as questions do: rows that were moved are no others' prefix, even if their tokens are.
FURTHER = ["\nThe visitor would like to hear more about that.\nLibrarian:", "\nA child asks:"]


class Server:
    """A running llama-server; what it wrote is in `log` once it is stopped."""

    def __init__(self, engine, model, mode, folder, scheme=None, own=()):
        self.unified = mode == "unified"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        arguments = ["-m", model, "-np", SLOTS, *MODES[mode], "--context-shift", "--slot-save-path", folder, "-t", 1]
        arguments += ["--host", "127.0.0.1", "--port", self.port, "--slots", "--no-ui", "-lv", "4", *own]
        self.output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [str(engine.binaries / "llama-server"), *map(str, arguments)],
            stdout=self.output, stderr=subprocess.STDOUT, env=engine.environment(scheme, SETTINGS),
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise OSError("llama-server did not start:\n" + "\n".join(self.log.splitlines()[-10:]))
            time.sleep(0.05)

    def call(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise OSError(f"{method} {path}: {answer.status} {text}")
            return json.loads(text)
        finally:
            connection.close()

    def healthy(self):
        try:
            return self.call("GET", "/health") == {"status": "ok"}
        except OSError:
            return False

    def tokens(self, text):
        return self.call("POST", "/tokenize", {"content": text, "add_special": False})["tokens"]

    def cancel(self, body, after):
        """Closes the connection when so many tokens of the answer have come, and waits until no slot works."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request("POST", "/completion", json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while after > 0:
            after -= answer.readline().startswith(b"data:")
        answer.close()
        connection.close()

    def wait(self):
        deadline = time.monotonic() + 60
        while any(slot["is_processing"] for slot in self.call("GET", "/slots")):
            if time.monotonic() > deadline:
                raise OSError("a cancelled request is still being answered")
            time.sleep(0.02)

    def stop(self, by):
        self.process.send_signal(by)
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.output.seek(0)
        self.log = self.output.read().decode(errors="replace")
        return status


class Session:
    """`script`: the answers of a free session, by part and conversation; None plays a free one. `parts` has what was answered,
    `mistakes` the same with its part, `wrong` what no session should do, a line each."""

    def __init__(self, server, script=None):
        self.server, self.script, self.parts, self.wrong, self.mistakes = server, script, {}, [], {}

    def body(self, prompt, count, slot=None, forced=None, **more):
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "seed": 1, "n_probs": 1, "ignore_eos": True, **more}
        if slot is not None:
            body["id_slot"] = slot
        if forced is not None:
            body["grammar"] = "root ::= " + " ".join(f"<[{token}]>" for token in forced)
        else:
            # Text that repeats itself is sure of each token, whatever the cache holds. What is compared has no penalty in it.
            body["repeat_penalty"] = 1.3
        return body

    def ask(self, part, requests, count, meanwhile=(), answers_of=None, **more):
        """All requests at once: {conversation: (prompt, slot, how many of its tokens must be in the cache)}. `meanwhile`: functions
        that run beside them. `answers_of`: the part whose answers are forced, default this one."""

        def one(number, prompt, slot):
            time.sleep(0.01 * number)  # they come in the same order in every session
            forced = self.script[answers_of or part][number]["tokens"] if self.script else None
            answers = self.server.call("POST", "/completion", self.body(prompt, count, slot, forced, **more))
            return [self.answer(answer) for answer in (answers if isinstance(answers, list) else [answers])]

        with ThreadPoolExecutor(2 * SLOTS) as pool:
            jobs = {number: pool.submit(one, number, *request[:2]) for number, request in requests.items()}
            for job in [pool.submit(function) for function in meanwhile]:
                job.result()
            found = {number: job.result() for number, job in jobs.items()}
        for number, answers in found.items():
            for copy, answer in enumerate(answers):
                # Copies of a free session may part ways, by rounding; the script is what the first one said.
                self.parts.setdefault(part, {})[number + copy] = answer if self.script else answers[0]
                if answer["cached"] < requests[number][2]:
                    self.wrong.append(f"{part}: {answer['cached']} tokens are taken from the cache, not {requests[number][2]}")
                if self.script and answer["tokens"] != self.script[answers_of or part][number]["tokens"]:
                    self.wrong.append(f"{part}: the answer is not the one that the grammar admits")

    @staticmethod
    def answer(answer):
        steps = answer["completion_probabilities"]
        return {
            "slot": answer["id_slot"],
            "cached": answer["timings"]["cache_n"],
            "tokens": [step["id"] for step in steps],
            "logprobs": [step["logprob"] for step in steps],
            "first": [step["top_logprobs"][0]["id"] for step in steps],
        }

    def said(self, part, number):
        return self.parts[part][number]["tokens"]


def shifted(prompt, answer, keep):
    """What is in a slot after an answer, as llama-server shifts it; the last token of an answer is not stored."""
    tokens = list(prompt)
    for token in answer[:-1]:
        if len(tokens) + 1 >= CONTEXT:
            tokens[keep : keep + (len(tokens) - keep) // 2] = []
        tokens.append(token)
    return tokens


def play(server, script=None, mistakes=False):
    """The session, over a server that stays healthy. `mistakes`: then, with the prompts that wrong rows in the cache amount to."""
    session = Session(server, script)
    numbers, shifts = range(SLOTS), range(1, 7)
    prefix, more, again = (server.tokens(text) for text in (PREFIX, *FURTHER))
    slot = (lambda number: None) if server.unified else (lambda number: number)

    first = {n: prefix + server.tokens(f"Visitor: {QUESTIONS[n]}\nLibrarian:") for n in numbers}
    session.ask("first turn", {n: (first[n], slot(n), 0) for n in numbers}, 24)
    one = {n: first[n] + session.said("first turn", n) for n in numbers}
    second = {n: one[n] + more for n in numbers}
    session.ask("second turn", {n: (second[n], slot(n), len(one[n]) - 1) for n in numbers}, 24)
    two = {n: second[n] + session.said("second turn", n) for n in numbers}
    third = {n: two[n] + more for n in numbers}

    # A conversation goes into a file, and on in another's slot.
    here, there = (session.parts["second turn"][n]["slot"] for n in (0, 7))
    server.call("POST", f"/slots/{here}?action=save", {"filename": "conversation"})
    server.call("POST", f"/slots/{here}?action=erase", {})
    server.call("POST", f"/slots/{there}?action=restore", {"filename": "conversation"})
    session.ask("restored", {0: (third[0], there, len(two[0]) - 1)}, 32)

    # Answers that do not fit: the slot forgets half of what is behind the prefix, and moves the rest.
    session.ask("shifted", {n: (third[n], slot(n), len(two[n]) - 1) for n in shifts}, 80, n_keep=len(prefix))
    kept = {n: shifted(third[n], session.said("shifted", n), len(prefix)) for n in shifts}
    session.ask("after the shift", {n: (kept[n] + again, slot(n), len(kept[n])) for n in shifts}, 16)

    # Two requests are given up while two others are answered; their slots then get other questions.
    given_up = [lambda n=n: server.cancel(session.body(first[n], 100, slot(n)), after=5 + n) for n in (0, 1)]
    session.ask("beside cancelled", {n: (first[n], slot(n), len(prefix)) for n in (2, 3)}, 24, meanwhile=given_up)
    server.wait()
    session.ask("after cancelled", {n: (first[n + 4], slot(n), len(prefix)) for n in (0, 1)}, 24)

    session.ask("copied", {0: (second[5], slot(0), len(prefix))}, 32, n_cmpl=3)
    if not server.healthy():
        session.wrong.append("the server is not healthy")
    if mistakes:
        wrong = Session(server, session.parts)
        other = {n: (n + 1) % SLOTS for n in numbers}
        stale = {n: first[n] + session.said("first turn", other[n]) + more for n in shifts}
        gap = {n: kept[n][: len(prefix)] + kept[n][len(prefix) + 1 :] + again for n in shifts}
        for name, part, prompts in [
            ("another slot's question", "first turn", {n: first[other[n]] for n in shifts}),
            ("another slot's first answer", "second turn", stale),
            ("a token less after the shift", "after the shift", gap),
            ("rows anew after the shift", "after the shift", {n: kept[n] + again for n in shifts}),
        ]:
            count = len(session.said(part, 1))
            wrong.ask(name, {n: (prompts[n], slot(n), 0) for n in (1, 2, 3)}, count, answers_of=part, cache_prompt=False)
            session.mistakes[name] = part, wrong.parts[name]
    return session


def compare(script, answers):
    """How far answers are from the script's: the mean distance of the logarithms of the probabilities that the script's tokens were
    given, that of the best and of the worst conversation, and the share of tokens for which the same one is the most likely."""
    distances = [[abs(a - b) for a, b in zip(script[n]["logprobs"], answers[n]["logprobs"])] for n in answers]
    means = [sum(one) / len(one) for one in distances]
    same = [a == b for n in answers for a, b in zip(script[n]["first"], answers[n]["first"])]
    mean = sum(map(sum, distances)) / sum(map(len, distances))
    return {"tokens": len(same), "mean": mean, "least": min(means), "worst": max(means), "top1": sum(same) / len(same)}
