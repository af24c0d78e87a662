"""Results as people read them: a table on a terminal; JSON, or the bare text, elsewhere.

Fails: never.
"""
import json
from typing import Any

KIB = 1024
CELL_MAX = 40                           # characters of what is not plain text, in a table
# What a table has of the longest lists; all of it is there with --json.
COLUMNS: dict[str, dict[str, str]] = {
    "bdev_get_bdevs": {"name": "name", "product_name": "product", "size": "size",
                       "block_size": "block size", "claimed": "claimed", "uuid": "uuid"},
    "vhost_get_controllers": {"ctrlr": "controller", "bdev": "bdev", "cpumask": "cores",
                              "clients": "clients", "running": "queues", "socket": "socket"},
    "framework_get_reactors": {"lcore": "core", "numa_id": "node", "busy%": "busy %",
                               "in_interrupt": "interrupt", "threads": "threads"},
    "thread_get_stats": {"name": "name", "id": "id", "cpumask": "cores", "busy%": "busy %",
                         "active_pollers_count": "active", "timed_pollers_count": "timed",
                         "paused_pollers_count": "paused"},
}


def text_of(method: str, result: Any, width: int | None) -> str:
    """Return a result as text. width: columns of the terminal; None: it goes elsewhere."""
    if result is True:
        return ""
    if isinstance(result, str):
        return result
    if width is None or not isinstance(result, dict | list) or not result:
        return json.dumps(result, indent=2)
    return tables_of(method, result, width)


def tables_of(method: str, result: Any, width: int) -> str:
    """Return a list as a table; of an object, what is plain, then a table of each list in it."""
    if isinstance(result, list):
        return table_of(method, result, width)
    lists = {key: value for key, value in result.items()
             if isinstance(value, list) and value and all(isinstance(v, dict) for v in value)}
    plain = [(key, cell(value)) for key, value in result.items() if key not in lists]
    parts = [grid(plain, ())] if plain else []
    for key, rows in lists.items():
        title = "" if not parts and len(lists) == 1 else f"{key}\n"
        parts.append(title + table_of(method, rows, width))
    return "\n\n".join(parts)


def table_of(method: str, items: list[Any], width: int) -> str:
    """Return a list as one table, or, where that is too wide, one of each item."""
    if not all(isinstance(item, dict) for item in items):
        return "\n".join(cell(item, 0) for item in items)
    columns = COLUMNS.get(method)
    if columns is not None:
        rows = [[cell(figure(item, key)) for key in columns] for item in items]
        return grid(rows, list(columns.values()))
    keys = list(dict.fromkeys(key for item in items for key in item))
    rows = [[cell(item.get(key, "")) for key in keys] for item in items]
    table = grid(rows, keys)
    if max(map(len, table.splitlines())) <= width:
        return table
    return "\n\n".join(grid([(key, cell(value)) for key, value in item.items()], ())
                       for item in items)


def figure(item: dict[str, Any], key: str) -> Any:
    """Return what a column shows of an item: what it has of that name, or what follows from it."""
    if key in item:
        return item[key]
    if key == "size":
        return size_text(item.get("block_size", 0) * item.get("num_blocks", 0))
    if key == "bdev":
        return item.get("backend_specific", {}).get("block", {}).get("bdev") or "-"
    if key == "clients":
        return len(item.get("sessions", ()))
    if key == "running":
        return sum(len(session.get("queues", ())) for session in item.get("sessions", ()))
    if key == "busy%":
        busy, idle = item.get("busy", 0), item.get("idle", 0)
        return f"{100 * busy / ((busy + idle) or 1):.1f}"
    if key == "threads":
        return " ".join(thread.get("name", "") for thread in item.get("lw_threads", ()))
    return ""


def size_text(size: int) -> str:
    """Write bytes in the largest unit that needs at most one digit behind the point."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < KIB or unit == "TiB":
            break
        amount /= KIB
    return f"{amount:.1f}".removesuffix(".0") + f" {unit}"


def cell(value: Any, most: int = CELL_MAX) -> str:
    """Write a value in one cell; most: characters of what is nested, 0 for all."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(v, str | int) for v in value):
        text = " ".join(map(str, value))
    elif isinstance(value, dict) and value and all(isinstance(v, bool) for v in value.values()):
        text = " ".join(key for key, on in value.items() if on) or "-"
    else:
        text = json.dumps(value)
    return text if not most or len(text) <= most else text[:most - 3] + "..."


def grid(rows: Any, heads: Any) -> str:
    """Lay rows out in columns."""
    from tabulate import tabulate
    return tabulate(rows, heads, tablefmt="simple" if heads else "plain",
                    disable_numparse=not heads)
