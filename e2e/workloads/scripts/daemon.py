# daemon.py PATH NAME: tells everybody who connects to PATH and asks that it is NAME.
import socket, sys, threading

path, name = sys.argv[1:]
s = socket.socket(socket.AF_UNIX)
s.bind(path)
s.listen(5)

def serve(c):
    while c.recv(100):
        c.send(name.encode())

while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
