#!/bin/bash
# Two writers and a reader at the SQLite database $1, which is in WAL mode. Each writer commits row after row, and says so: "NAME N".
set -u
db=$1
sqlite3 "$db" "PRAGMA journal_mode=WAL; CREATE TABLE rows (who TEXT, n INTEGER, data BLOB, PRIMARY KEY (who, n));" || exit 1

writer() {
	{
		echo ".timeout 60000"
		echo "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=20; PRAGMA cache_spill=1;"
		for ((n = 1; ; n++)); do
			echo "INSERT INTO rows VALUES ('$1', $n, randomblob(500));"
			echo "SELECT '$1 $n';"
		done
	} | stdbuf -oL sqlite3 -bail "$db"
	echo "wrong: $1 has ended"
}

reader() {
	{
		echo ".timeout 60000"
		while :; do
			echo "SELECT 'wrong: ' || who || ' has ' || count(*) || ' of ' || max(n) FROM rows GROUP BY who HAVING count(*) <> max(n);"
			sleep 0.02
		done
	} | sqlite3 -bail "$db"
	echo "wrong: the reader has ended"
}

writer first &
writer second &
reader &
wait
