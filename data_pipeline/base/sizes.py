"""Numbers of bytes as people read them."""


def size_text(num_bytes: float) -> str:
    """Return a size in three digits and the unit that suits it, in powers of 1000: 340 MB, 1.47 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    if unit == "bytes":
        return f"{num_bytes:.0f} bytes" if num_bytes else "0"
    return f"{num_bytes:.{max(0, 3 - len(f'{num_bytes:.0f}'))}f} {unit}"
