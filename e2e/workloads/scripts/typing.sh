#!/bin/bash
# Types commands into an interactive shell at a terminal: pipelines, and jobs in the background. The file $2 receives what the terminal shows.
set -eu
echo up
{
	for ((i = 1; i <= $1; i++)); do
		echo "echo $i | cat | sed s/^/got:/"
		((i % 10)) || echo "(sleep 0.5; echo slept:$i | cat) &"
		sleep 0.02
	done
	echo 'wait; echo end:$((6 * 7)); exit'
} | script --quiet --return --flush --command 'exec bash --norc --noprofile -i' "$2"
