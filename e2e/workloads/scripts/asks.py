# asks.py PATH: asks the daemon at PATH who it is, over one connection, and prints its answer when that is another one than before.
import socket, sys, time

s = socket.socket(socket.AF_UNIX)
while s.connect_ex(sys.argv[1]): # the daemon is bound and does not listen yet
    time.sleep(0.05)
s.settimeout(1)
last = None
while True:
    try:
        s.send(b"who")
        answer = s.recv(100)
    except socket.timeout: # the question or its answer was under way when the connection was made anew
        continue
    if answer != last:
        print("it is", answer.decode(), flush=True)
        last = answer
    time.sleep(0.05)
