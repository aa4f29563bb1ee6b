"""The crawl beside plain Scrapy: CPU a page, and memory as the frontier grows. Writes results/acquire.json.

    python -m benchmarks.acquire [--pages 1500] [--runs 3]

The peer is what a user of Scrapy would write first: a spider with a LinkExtractor that writes WARC records by warcio,
robots.txt obeyed, Scrapy's memory queue. Both crawl the same site on loopback with eight requests under way and no
delay, in turn, each in a process of its own whose CPU seconds (user and system) are counted; ours has the frontier in
SQLite, a commit for each page, robots directives, digests and the address guard on top. The server is a third process.
Memory is the peak of a crawl's resident set with 1,000 and with 100,000 URLs in its frontier.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import save, where
from llm_core.data.web.frontier import Budgets, Frontier
from llm_core.data.web.job import CrawlJob

CONCURRENCY = 8
PAGE_BYTES = 10_000
FRONTIERS = (1_000, 100_000)

SERVER = """
import sys
from twisted.internet import protocol, reactor
pages, size = int(sys.argv[1]), int(sys.argv[2])
WORDS = "The module reads each line of the file in turn and closes it when the last line was read. "
def body(n):
    links = "".join(f"<li><a href='/p/{k}' class=link title=next>page {k}</a></li>" for k in
                    [*range(n * 3 + 1, min(pages, n * 3 + 4)), *range(max(0, n - 12), n)])
    head = f"<html><head><title>Page {n}</title><meta charset=utf-8></head><body><h1>Page {n}</h1><ul>{links}</ul>"
    paragraphs = "".join(f"<p class=text id=p{i}>{n} {WORDS * 4}</p>" for i in range(size // 420))
    return (head + paragraphs + "</body></html>").encode()
def answer(status, kind, data):
    return b"HTTP/1.1 %s\\r\\nContent-Type: %s\\r\\nContent-Length: %d\\r\\n\\r\\n" % (status, kind, len(data)) + data
ANSWERS = {b"/p/%d" % n: answer(b"200 OK", b"text/html; charset=utf-8", body(n)) for n in range(pages)}
MISSING = answer(b"404 Not Found", b"text/plain", b"no")
class Http(protocol.Protocol):
    rest = b""
    def dataReceived(self, data):
        *requests, self.rest = (self.rest + data).split(b"\\r\\n\\r\\n")
        for request in requests:
            self.transport.write(ANSWERS.get(request.split(b" ", 2)[1], MISSING))
factory = protocol.Factory.forProtocol(Http)
factory.noisy = False
port = reactor.listenTCP(0, factory, interface="127.0.0.1", backlog=128)
print(port.getHost().port, flush=True)
reactor.run()
"""

PEER = """
import json, sys
from io import BytesIO
from scrapy import Spider
from scrapy.crawler import CrawlerProcess
from scrapy.linkextractors import LinkExtractor
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter
start, folder, agent, concurrency = sys.argv[1:5]
class Plain(Spider):
    name = "plain"
    start_urls = [start]
    allowed_domains = ["127.0.0.1"]
    extractor = LinkExtractor()
    stored = 0
    def parse(self, response):
        pairs = [(k.decode("latin-1"), v.decode("latin-1")) for k, vs in response.headers.items() for v in vs]
        http = StatusAndHeaders("200 OK", pairs, protocol="HTTP/1.1")
        writer.write_record(writer.create_warc_record(
            response.url, "response", payload=BytesIO(response.body), http_headers=http))
        self.stored += 1
        for link in self.extractor.extract_links(response):
            yield response.follow(link)
    def closed(self, reason):
        print(json.dumps({"stored": self.stored}), flush=True)
with open(folder + "/plain.warc.gz", "wb") as file:
    writer = WARCWriter(file, gzip=True)
    process = CrawlerProcess({
        "USER_AGENT": agent, "ROBOTSTXT_OBEY": True, "LOG_LEVEL": "ERROR", "COOKIES_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False, "CONCURRENT_REQUESTS": 16, "CONCURRENT_REQUESTS_PER_DOMAIN": int(concurrency),
        "DOWNLOAD_DELAY": 0})
    process.crawl(Plain)
    process.start()
"""


def cpu_of(command: list[str]) -> tuple[float, dict[str, Any], int]:
    """(CPU seconds, the last line of output, peak resident set in bytes) of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = {}
    for line in child.stdout:
        last = json.loads(line)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = status
    if status:
        raise SystemExit(f"{command[:4]} ended with status {status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, last, usage.ru_maxrss * 1024


def job_of(port: int, folder: Path, pages: int) -> CrawlJob:
    """Our crawl of the benchmark's site."""
    return CrawlJob(
        store=str(folder / "store"),
        start=(f"http://127.0.0.1:{port}/p/0",),
        contact="benchmark@example.org",
        delay=0.0,
        concurrency=CONCURRENCY,
        max_pages=pages,
        depth=1_000,
        allow_private=("127.0.0.1",),
    )


def ours(job: CrawlJob, folder: Path) -> tuple[float, int, int]:
    """(CPU seconds, pages, peak bytes) of one crawl by us."""
    job.write(folder / "job.json")
    command = [sys.executable, "-m", "llm_core.data.web.crawl", str(folder / "job.json")]
    seconds, last, peak = cpu_of(command)
    return seconds, int(last["outcomes"]["stored"]), peak


def plain(port: int, folder: Path) -> tuple[float, int, int]:
    """(CPU seconds, pages, peak bytes) of one crawl by plain Scrapy."""
    command = [sys.executable, "-c", PEER, f"http://127.0.0.1:{port}/p/0", str(folder), "benchmark", str(CONCURRENCY)]
    seconds, last, peak = cpu_of(command)
    return seconds, int(last["stored"]), peak


def cpu_a_page(port: int, pages: int, runs: int) -> dict[str, Any]:
    """CPU milliseconds a page of both crawlers in turn, medians, the start of the process included."""
    found: dict[str, list[float]] = {"ours": [], "scrapy": []}
    for turn in range(runs):
        for name in ("ours", "scrapy") if turn % 2 == 0 else ("scrapy", "ours"):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                seconds, stored, _ = (
                    ours(job_of(port, folder, pages), folder) if name == "ours" else plain(port, folder)
                )
                if stored not in (pages, pages + 1):  # plain Scrapy fetches its start URL twice
                    raise SystemExit(f"{name} stored {stored} pages of {pages}")
                found[name].append(1_000 * seconds / stored)
    median = {name: statistics.median(values) for name, values in found.items()}
    return {
        "pages": pages,
        "bytes_a_page": PAGE_BYTES,
        "cpu_ms_a_page": {name: round(value, 3) for name, value in median.items()},
        "all_cpu_ms_a_page": {name: [round(value, 3) for value in values] for name, values in found.items()},
        "ratio": round(median["ours"] / median["scrapy"], 3),
        "note": "CPU of the whole process, its start included, by pages",
    }


def memory(port: int) -> dict[str, Any]:
    """Peak resident set of a crawl of 200 pages whose frontier holds so many URLs more, on one host and on many."""
    found = {}
    for count in FRONTIERS:
        for hosts in (1, count // 10):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                job = job_of(port, folder, 200)
                frontier = Frontier(folder / "store" / "frontier.sqlite", Budgets(max_pages=1))
                frontier.add(job.starts(), 0)
                names = (f"http://h{i % hosts}.invalid/page/{i}" for i in range(count))
                frontier.add(names if hosts > 1 else (f"http://127.0.0.1:{port}/none/{i}" for i in range(count)), 1)
                frontier.close()
                _, _, peak = ours(job_with_requests(job), folder)
                found[f"{count:,} URLs, {hosts:,} hosts"] = {"peak_mb": round(peak / 1e6, 1)}
    return found


def job_with_requests(job: CrawlJob) -> CrawlJob:
    """The job with room for requests that find nothing."""
    values = json.loads(json.dumps({name: getattr(job, name) for name in job.__dataclass_fields__}))
    return CrawlJob(**{**values, "start": tuple(values["start"]), "max_requests": 500, "hosts": (),
                       "allow_private": ("127.0.0.1",)})  # fmt: skip


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pages", type=int, default=1_500)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    command = [sys.executable, "-c", SERVER, str(options.pages), str(PAGE_BYTES)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        began = time.time()
        parts = {"where": where(), "cpu": cpu_a_page(port, options.pages, options.runs), "memory": memory(port)}
        parts["seconds"] = round(time.time() - began, 1)
    finally:
        server.terminate()
        server.wait()
    path = save("acquire", parts)
    print(json.dumps({name: parts[name] for name in ("cpu", "memory")}, indent=2))
    print(path)


if __name__ == "__main__":
    main()
