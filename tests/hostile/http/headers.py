"""Headers: too many, too long, broken, or meant for someone else."""

from functools import partial

from tests.hostile.http.registry import add, attack
from tests.hostile.http.target import CHAT, GONE, JSON, Answer, Target, asked

BROKEN = {
    "a NUL in a header": "X: a\0b",
    "a NUL in a header's name": "X\0: ab",
    "a carriage return alone": "X: a\rY: b",
    "a header without a colon": "Xab",
    "a header without a name": ": x",
    "a space before the colon": "X : y",
    "a name that is not ASCII": "\xc3\xa9: y",
    "a name with a bracket": "X(y): z",
    "two Host headers": "Host: evil.example",
}
HARMLESS = {
    "a folded header": "X: y\r\n folded",
    "a value in UTF-8": "X: \xc3\xa9\xff",
    "a header's name of 30 kB": "x" * 30_000 + ": y",
    "a thousand ranges": "Range: bytes=0-0," + ",".join(["0-1"] * 1000),
    "a forwarded client": "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: evil.example",
    "another URL in a header": "X-Original-URL: /metrics\r\nX-Rewrite-URL: /metrics",
    "a thousand cookies": "Cookie: " + "; ".join(f"a{n}=b" for n in range(1000)),
}


def get(header: str, target: Target) -> Answer:
    return target.get("/v1/models", header)


for name, header in BROKEN.items():
    add(name, partial(get, header), 400)
for name, header in HARMLESS.items():
    add(name, partial(get, header), 200)
add("a header of 1 MB", partial(get, "X: " + "y" * 1_000_000), 400, GONE)
add("a header of 200 kB", partial(get, "X: " + "y" * 200_000), 400, GONE)
for name, lines, statuses in (
    ("a thousand headers", [f"X-{n}: y" for n in range(1000)], (200,)),
    ("thousands of headers", [f"X-{n}: y" for n in range(20_000)], (400, GONE)),
    ("the shortest headers by thousands", ["a:"] * 60_000, (400, GONE)),
):
    add(name, partial(get, "\r\n".join(lines)), *statuses)


@attack(400)
def a_header_that_begins_folded(target: Target) -> Answer:
    return target.raw(b"GET /health HTTP/1.1\r\n Host: x\r\n\r\n")


@attack(200)
def lines_that_end_without_a_carriage_return(target: Target) -> Answer:
    return target.raw(target.head("GET /v1/models HTTP/1.1").replace(b"\r\n", b"\n") + b"\n")


@attack(400)
def no_host_at_all(target: Target) -> Answer:
    return target.raw(target.head("GET /v1/models HTTP/1.1", host="") + b"\r\n")


@attack(405)
def another_method_in_a_header(target: Target) -> Answer:
    return target.get(CHAT, "X-HTTP-Method-Override: POST")


@attack(200)
def thousands_of_arguments_in_the_path(target: Target) -> Answer:
    return target.get("/v1/models?" + "&".join(f"a={n}" for n in range(3000)))


@attack(400)
def a_form_of_many_parts(target: Target) -> Answer:
    body = b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\ndemo\r\n" * 1000 + b"--x--"
    return target.post(body, CHAT, "Content-Type: multipart/form-data; boundary=x")


@attack(400)
def an_expectation_of_a_body_that_is_no_json(target: Target) -> Answer:
    head = target.head(f"POST {CHAT} HTTP/1.1", JSON, "Expect: 100-continue", "Content-Length: 1")
    answer = target.raw(head + b"\r\n", b"{")
    assert asked()["model"].encode() not in answer.body
    return answer
