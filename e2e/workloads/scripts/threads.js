// A program of node.js that uses what such programs use: timers, worker threads that share memory and send messages, files by
// way of the thread pool, a child, promises, and an HTTP server whose /state tells what is wrong.
'use strict';
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');

if (!isMainThread) {
	// Counts in shared memory and computes what it is asked to.
	const shared = new Int32Array(workerData);
	setInterval(() => Atomics.add(shared, 0, 1), 5);
	parentPort.on('message', (n) => {
		let sum = 0;
		for (let i = 1; i <= n; i++) sum += i;
		Atomics.add(shared, 1, 1);
		parentPort.postMessage({ n, sum });
	});
	return;
}

const { spawn } = require('node:child_process');
const fs = require('node:fs/promises');
const http = require('node:http');

const wrong = [];
const check = (ok, text) => { if (!ok && wrong.length < 10) wrong.push(text); };
const seen = { ticks: 0, answers: 0, reads: 0, lines: 0, requests: 0 };

// Timers: none fires early, whatever the clocks of the host say.
let last = performance.now();
setInterval(() => {
	const now = performance.now();
	check(now >= last, `the clock went back from ${last} to ${now}`);
	last = now;
	seen.ticks++;
}, 10);
(function again() {
	const from = performance.now();
	setTimeout(() => {
		check(performance.now() - from >= 49, `a timer of 50 ms fired after ${performance.now() - from}`);
		again();
	}, 50);
})();

// Workers: each answer is right, and comes in the order of the questions.
const buffer = new SharedArrayBuffer(8);
for (let w = 0; w < 2; w++) {
	const worker = new Worker(__filename, { workerData: buffer });
	let n = 1000;
	worker.on('message', (m) => {
		check(m.n === n && m.sum === n * (n + 1) / 2, `sum of ${n}: ${JSON.stringify(m)}`);
		seen.answers++;
		worker.postMessage(++n);
	});
	worker.on('error', (e) => check(false, `worker: ${e}`));
	worker.postMessage(n);
}

// Files, by threads of libuv's.
(async () => {
	const text = await fs.readFile(__filename, 'utf8');
	for (;;) {
		check(await fs.readFile(__filename, 'utf8') === text, 'the file has changed');
		seen.reads++;
		await new Promise((r) => setTimeout(r, 3));
	}
})().catch((e) => check(false, `reading: ${e}`));

// A child that echoes lines.
const cat = spawn('cat', [], { stdio: ['pipe', 'pipe', 'inherit'] });
let line = 0, rest = '';
cat.stdout.on('data', (d) => {
	const lines = (rest + d).split('\n');
	rest = lines.pop();
	for (const l of lines) {
		check(l === `line ${line}`, `the child says ${l}, want line ${line}`);
		line++;
		seen.lines++;
		setTimeout(() => cat.stdin.write(`line ${line}\n`), 2);
	}
});
cat.on('exit', (code, signal) => check(false, `the child ended: ${code} ${signal}`));
cat.stdin.write('line 0\n');

const shared = new Int32Array(buffer);
const server = http.createServer((req, res) => {
	seen.requests++;
	res.setHeader('Content-Type', 'application/json');
	res.end(JSON.stringify({ wrong, ...seen, counted: Atomics.load(shared, 0), asked: Atomics.load(shared, 1) }));
});
server.keepAliveTimeout = 600000;
server.listen(8080, '0.0.0.0', () => console.log('up'));
