"""The process in which a student's code runs: `python -I worker.py OPTIONS`, started by `sandbox`. Imports no refquant.

The grader writes requests to standard input and reads replies from standard output, as frames: eight bytes of length,
then JSON, then the raw bytes of arrays. Nothing is pickled: what a student's process sends can be wrong, but not run.

    {"do": "cell", "source": ...}                      run it; reply {"error": ..., "functions": names}
    {"do": "call", "name": ..., "args": [...]}         call a function; reply {"value": ...} or {"error": ...}
    {"do": "hold", "name": ..., "args": [...]}         keep the arguments; a later call has `held` and adds its own

Before any of the student's code, the process limits itself (memory, processor time, size of a file) and installs an
audit hook, which Python cannot remove: imports other than the allowed ones, files outside the working folder, other
processes, sockets and signals raise PermissionError. It stops what is written in Python; it does not stop a determined
attacker (see notebooks/assignments/README.md, which says what does).
"""

import builtins
import json
import os
import struct
import sys
import types

MAX_FRAME = 256 * 2**20
KINDS = "biuf"  # of arrays that may travel: booleans, integers, floats
REFUSED = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "os.killpg"),
    *("os.putenv", "os.chown", "os.setxattr", "pty.spawn", "signal.pthread_kill", "syslog.syslog"),
}
REFUSED_FAMILIES = ("subprocess", "socket", "resource", "ctypes", "ftplib", "http", "urllib", "webbrowser")
CHANGES = {"os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "os.utime", "shutil.rmtree"}
MOVES = {"os.rename", "os.link", "os.symlink", "shutil.move"}
QUIET_FILES = ("/dev/null", "/dev/urandom", "/proc/cpuinfo", "/proc/meminfo", "/proc/self/", "/sys/devices/system/cpu")


# ---- frames, used by both sides


def encode(value) -> bytes:
    """Turn plain data into a frame; raise `TypeError` for anything else than numbers, text, lists, dicts, arrays."""
    import numpy as np

    arrays = []

    def tree(item, depth=0):
        if depth > 8:
            raise TypeError("the value is nested too deeply")
        if item is None or isinstance(item, bool | str):
            return item
        if isinstance(item, np.ndarray | np.generic):
            array = np.ascontiguousarray(item)
            if array.dtype.kind not in KINDS or array.dtype.itemsize > 8:
                raise TypeError(f"an array of {array.dtype} cannot be an answer")
            arrays.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            return {"array": array.dtype.str.replace(">", "<"), "shape": list(np.shape(item))}
        if isinstance(item, int):
            if abs(item) >= 2**200:
                raise TypeError("an integer of more than 200 bits cannot be an answer")
            return {"int": str(int(item))}
        if isinstance(item, float):
            return {"float": float(item).hex()}
        if isinstance(item, list | tuple):
            return {type(item).__name__ if type(item) is list else "tuple": [tree(each, depth + 1) for each in item]}
        if isinstance(item, dict):
            return {"dict": [[str(key), tree(each, depth + 1)] for key, each in item.items()]}
        raise TypeError(f"a value of type {type(item).__name__} cannot be an answer")

    head = json.dumps(tree(value)).encode()
    body = b"".join([struct.pack("<I", len(head)), head, *arrays])
    if len(body) > MAX_FRAME:
        raise TypeError(f"{len(body)} bytes are too many for an answer")
    return struct.pack("<Q", len(body)) + body


def decode(body: bytes):
    """Turn the bytes of a frame, without its length, back into data; raise `ValueError` where they are not one."""
    import numpy as np

    if len(body) < 4:
        raise ValueError("a frame without a head")
    (size,) = struct.unpack_from("<I", body)
    at = 4 + size

    def value(item, depth=0):
        nonlocal at
        if depth > 8:
            raise ValueError("nested too deeply")
        if item is None or isinstance(item, bool | str):
            return item
        if "array" in item:
            dtype, shape = np.dtype(item["array"]), [int(n) for n in item["shape"]]
            if dtype.kind not in KINDS or dtype.itemsize > 8 or len(shape) > 8 or min(shape, default=0) < 0:
                raise ValueError("not an array that may travel")
            count = 1
            for n in shape:
                count *= n
            if at + count * dtype.itemsize > len(body):
                raise ValueError("an array beyond the frame")
            array = np.frombuffer(body, dtype, count, at).reshape(shape).copy()
            at += count * dtype.itemsize
            return array
        ((kind, inner),) = item.items()
        if kind == "int":
            return int(inner[:70])
        if kind == "float":
            return float.fromhex(inner)
        if kind == "dict":
            return {str(key): value(each, depth + 1) for key, each in inner}
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](value(each, depth + 1) for each in inner)
        raise ValueError("unknown kind")

    try:
        return value(json.loads(body[4:at]))
    except (TypeError, KeyError, AttributeError, RecursionError, OverflowError) as problem:
        raise ValueError(f"not a frame: {problem}") from problem


# ---- the process


def limit(options) -> None:
    """Set the limits of this process, for good."""
    import resource

    for name, value in (
        ("RLIMIT_AS", "memory"),
        ("RLIMIT_CPU", "cpu"),
        ("RLIMIT_FSIZE", "file"),
        ("RLIMIT_CORE", None),
    ):
        most = options[value] if value else 0
        resource.setrlimit(getattr(resource, name), (most, most))


def stand_in() -> None:
    """What `from refquant import classroom` finds here: a check that does nothing, and no refquant at all."""
    package, classroom = types.ModuleType("refquant"), types.ModuleType("refquant.classroom")
    package.classroom = classroom
    classroom.check = classroom.grade = lambda *args, **options: None
    sys.modules.update({"refquant": package, "refquant.classroom": classroom})
    shell = types.SimpleNamespace(
        run_line_magic=lambda *a: None, run_cell_magic=lambda *a: None, system=lambda *a: None
    )
    builtins.get_ipython = lambda: shell


def guard(folder: str, allowed: frozenset, readable: tuple) -> None:
    """Install the audit hook."""
    real, fspath, decoded = os.path.realpath, os.fspath, os.fsdecode
    own = {name.partition(".")[0] for name in os.listdir(folder)}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    native = "numba" in allowed  # which needs ctypes for itself

    def inside(path, directory=-1):
        path = decoded(fspath(path))
        if isinstance(directory, int) and directory >= 0 and not path.startswith("/"):
            path = real(f"/proc/self/fd/{directory}") + "/" + path
        path = real(path)
        return path if path == folder or path.startswith(folder + "/") else None

    def hook(event, args):
        if event == "open":
            path, _, flags = args
            if isinstance(path, int) or inside(path):
                return
            full = real(decoded(fspath(path)))
            if (flags or 0) & writing and full != "/dev/null":
                raise PermissionError(f"{full} may not be written")
            if not full.startswith(readable):
                raise PermissionError(f"{full} may not be read")
        elif event == "import":
            top = args[0].partition(".")[0]
            if top not in allowed and top not in own:
                raise ImportError(f"{args[0]} may not be imported in graded work")
        elif event in CHANGES:
            path, last = args[0], args[-1]
            directory = last if isinstance(last, int) and event != "os.truncate" else -1
            if not isinstance(path, int) and not inside(path, directory):
                raise PermissionError(f"{event} outside the working folder")
        elif event in MOVES:
            if not all(inside(each) for each in args[:2]):
                raise PermissionError(f"{event} outside the working folder")
        elif event in REFUSED or (
            event.partition(".")[0] in REFUSED_FAMILIES and not (native and event[:6] == "ctypes")
        ):
            raise PermissionError(f"{event} is not allowed in graded work")

    sys.addaudithook(hook)


def describe(problem: BaseException) -> str:
    """A student's exception, with the line of the cell where it happened."""
    lines, trace = [], problem.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename.startswith("<cell"):
            lines.append(f"line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename[1:-1]}")
        trace = trace.tb_next
    where = f" ({lines[-1]})" if lines else ""
    return f"{type(problem).__name__}{f': {problem}'[:500] if str(problem) else ''}{where}"


def serve(channel_in, channel_out) -> None:
    """Answer requests until the grader goes."""
    space, held = {"__name__": "__main__", "__builtins__": builtins}, {}
    while True:
        head = channel_in.read(8)
        if len(head) < 8:
            return
        request = decode(channel_in.read(struct.unpack("<Q", head)[0]))
        try:
            if request["do"] == "cell":
                reply = run_cell(request, space)
            elif request["do"] == "hold":
                held[request["name"]] = request["args"]
                reply = {"value": None}
            else:
                args = held[request["name"]] + request["args"] if request.get("held") else request["args"]
                reply = {"value": space[request["name"]](*args)}
            frame = encode(reply)
        except BaseException as problem:  # sys.exit and KeyboardInterrupt, too, are the student's
            frame = encode({"error": describe(problem)})
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                continue  # the student closed or replaced it
        channel_out.write(frame)
        channel_out.flush()


def run_cell(request, space) -> dict:
    """Run one cell; what it defined so far stays when it fails."""
    error = None
    try:
        exec(compile(request["source"], f"<cell {request['number']}>", "exec"), space)
    except BaseException as problem:
        error = describe(problem)
    return {"error": error, "functions": [name for name, each in space.items() if callable(each) and name[:2] != "__"]}


def main() -> None:
    """Set up, then serve."""
    options = json.loads(sys.argv[1])
    channel_in, channel_out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    limit(options)
    import numpy

    packages = [numpy]
    for name in options["packages"]:
        packages.append(__import__(name))
    if "numba" in options["packages"]:
        sys.modules["numba"].njit(lambda: 0)()  # loads what Numba loads when it first compiles
    stand_in()
    folder = os.path.realpath(os.getcwd())
    sys.path.insert(0, folder)
    sites = tuple(os.path.dirname(os.path.realpath(each.__file__)) for each in packages)
    site = os.path.dirname(sites[0])
    readable = (os.path.dirname(os.path.realpath(os.__file__)) + "/", *(each + "/" for each in sites), *QUIET_FILES)
    names = {os.path.basename(each) for each in sites}
    readable += tuple(f"{site}/{name}.libs/" for name in names)
    within = frozenset(sys.stdlib_module_names - {"ctypes", "_ctypes"}) | names
    guard(folder, within, readable)
    serve(channel_in, channel_out)


if __name__ == "__main__":
    main()
