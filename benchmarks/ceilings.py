"""What this machine can do at most, measured with torch: matrix products and memory reads."""

import argparse
import json
import sys
import time
from collections.abc import Callable

import torch

SECONDS = 0.7
# Square matrices, large enough for the peak and small enough to repeat.
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
READ_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def best_seconds(run: Callable[[], object], device: str) -> float:
    """Return the shortest of the runs that fit the time, at least three."""
    best, runs, end = float("inf"), 0, time.perf_counter() + SECONDS
    while runs < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return best


def product_gflops(dtype: torch.dtype, device: str) -> float:
    """Return the best rate of a square matrix product, a multiply and an add counted as two."""
    size = MATRIX_SIZE[device]
    seconds = min(best_seconds(route, device) for route in product_routes(dtype, device))
    return 2 * size**3 / seconds / 1e9


def product_routes(dtype: torch.dtype, device: str) -> list[Callable[[], object]]:
    """Return the ways to a product: the BLAS that torch was built with is not the fastest on every processor."""
    size = MATRIX_SIZE[device]
    if dtype == torch.int8:
        a, b = (torch.randint(-128, 127, (size, size), dtype=dtype, device=device) for _ in range(2))
        return [lambda: torch._int_mm(a, b.t())]
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    routes: list[Callable[[], object]] = [lambda: a @ b.t()]
    if device == "cpu" and torch._C._has_mkldnn:
        packed = torch.ops.mkldnn._reorder_linear_weight(b, size)
        routes.append(lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], ""))
    return routes


def read_gb_s(device: str) -> float:
    """Return the rate at which a tensor far larger than the caches is read."""
    data = torch.ones(READ_BYTES[device] // 4, device=device)
    return READ_BYTES[device] / best_seconds(data.sum, device) / 1e9


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", choices=sorted(MATRIX_SIZE), required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, object] = {
        f"{name}_gflops": round(product_gflops(dtype, options.device), 1) for name, dtype in DTYPES.items()
    }
    result["read_gb_s"] = round(read_gb_s(options.device), 1)
    if options.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    sys.stdout.write(json.dumps(result | {"torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
