"""A Python program for tests of a move: threads, a child process over pipes, an open file.

    threads.py TURNS FILE

FILE holds the numbers from 0 on, one a line. The threads read them one after another and have the child double them. It
ends with "done N" and exit code 0, or with what went wrong and exit code 1.
"""
import subprocess
import sys
import threading
import time

TURNS = int(sys.argv[1])
lock = threading.Lock()
data = open(sys.argv[2])
child = subprocess.Popen(
    [sys.executable, "-uc", "import sys\nfor l in sys.stdin: print(int(l) * 2, flush=True)"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
failed = []
count = 0


def work():
    global count
    try:
        for _ in range(TURNS):
            with lock:
                n = int(data.readline())
                if n != count:
                    failed.append("line %d of the file says %d" % (count, n))
                count += 1
                child.stdin.write("%d\n" % n)
                child.stdin.flush()
                got = int(child.stdout.readline())
                if got != 2 * n:
                    failed.append("the child answers %d to %d" % (got, n))
            time.sleep(0.01)
    except Exception as e:
        failed.append(repr(e))


threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads:
    t.start()
print("up", flush=True)
for t in threads:
    t.join()
child.stdin.close()
if child.wait() != 0:
    failed.append("the child ended with %d" % child.returncode)
if failed:
    print("failed:", "; ".join(failed), flush=True)
    sys.exit(1)
print("done", count, flush=True)
