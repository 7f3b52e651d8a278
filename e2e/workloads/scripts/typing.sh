#!/bin/bash
# Types commands into an interactive shell at a terminal: pipelines, and jobs in the background, until there is a file $1.stop. The file
# $1 receives what the terminal shows, the last of which is "end:N", for N commands.
set -eu
echo up
{
	for ((i = 1; ; i++)); do
		echo "echo $i | cat | sed s/^/got:/"
		((i % 10)) || echo "(sleep 0.5; echo slept:$i | cat) &"
		[ ! -e "$1.stop" ] || break
		sleep 0.02
	done
	echo "wait; echo end:\$(($i))x; exit"
} | script --quiet --return --flush --command 'exec bash --norc --noprofile -i' "$1"
