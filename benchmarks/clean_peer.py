"""datatrove beside us, run by the peers' Python: reads texts as JSON from a file, prints CPU seconds and decisions.

.venv-peers/bin/python benchmarks/clean_peer.py chain|signatures TEXTS.json
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable


def chain() -> Callable[[str], str]:
    """Gopher repetition, Gopher quality, C4, FineWeb, as FineWeb orders them, with datatrove's own word split."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    filters = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]

    def decide(text: str) -> str:
        document = Document(text=text, id="0")
        for one in filters:
            result = one.filter(document)
            if result is not True:
                return result[1] if isinstance(result, tuple) else "dropped"
        return "keep"

    return decide


def signatures() -> Callable[[str], str]:
    """MinHash signatures with FineWeb's settings."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
    step = MinhashDedupSignature(output_folder="/tmp/unused-signatures", config=config)
    return lambda text: str(len(step.get_signature(step.get_shingles(text))))


def main() -> None:
    """Time one of the two on the texts."""
    with open(sys.argv[2]) as file:
        texts = json.load(file)
    decide = {"chain": chain, "signatures": signatures}[sys.argv[1]]()
    decide(texts[0])  # loads the language model
    began = time.process_time()
    decisions = [decide(text) for text in texts]
    print(json.dumps({"cpu_s": time.process_time() - began, "decisions": decisions}))


if __name__ == "__main__":
    main()
