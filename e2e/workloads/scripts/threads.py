"""A Python program for tests of a move: threads, a child process over pipes, an open file. Prints a line per second of work.

It ends with "done N" and exit code 0 when its file holds what all threads wrote, or with the reason and exit code 1.
"""
import subprocess
import sys
import threading
import time

TURNS = int(sys.argv[1])
lock = threading.Lock()
out = open("lines", "w+", buffering=1)
child = subprocess.Popen(
    [sys.executable, "-uc", "import sys\nfor l in sys.stdin: print(int(l) * 2, flush=True)"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
failed = []


def work(n):
    try:
        for i in range(TURNS):
            with lock:
                child.stdin.write("%d\n" % (n * 1000 + i))
                child.stdin.flush()
                got = int(child.stdout.readline())
                if got != 2 * (n * 1000 + i):
                    failed.append("the child answers %d to %d" % (got, n * 1000 + i))
                out.write("%d %d\n" % (n, i))
            time.sleep(0.01)
    except Exception as e:
        failed.append(repr(e))


threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for t in threads:
    t.start()
print("up", flush=True)
for t in threads:
    t.join()
child.stdin.close()
if child.wait() != 0:
    failed.append("the child ended with %d" % child.returncode)
out.seek(0)
lines = sorted(out.read().split("\n")[:-1])
if lines != sorted("%d %d" % (n, i) for n in range(4) for i in range(TURNS)):
    failed.append("the file holds %d lines, want %d" % (len(lines), 4 * TURNS))
if failed:
    print("failed:", "; ".join(failed), flush=True)
    sys.exit(1)
print("done", 4 * TURNS, flush=True)
