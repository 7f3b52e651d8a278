// Command goserver is an ordinary Go server for tests of a move: keep-alive connections over a listener as net/http
// makes it (MPTCP by default), and goroutines blocked in every way: timers, tickers, channels, mutexes, sockets, sleeps.
//
//	GET /count          adds one to a counter and answers it
//	GET /slow?ms=N      answers after N ms, from a timer
//	GET /health         "ok", or what went wrong in one of the goroutines
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

type server struct {
	count  atomic.Int64
	mu     sync.Mutex
	broken error
}

func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = err
	}
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: goserver ADDR")
	}
	s := &server{}
	s.occupy()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, s.count.Add(1)) })
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		ms, err := strconv.Atoi(r.FormValue("ms"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		<-time.After(time.Duration(ms) * time.Millisecond)
		_, _ = fmt.Fprintln(w, ms)
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.broken != nil {
			http.Error(w, s.broken.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintln(w, "ok", runtime.NumGoroutine())
	})
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
}

// occupy starts goroutines that wait in every way there is, and check each other for ever.
func (s *server) occupy() {
	for i := range 50 {
		ping, pong := make(chan int), make(chan int)
		go func() {
			for v := range ping {
				pong <- v + 1
			}
		}()
		go func() {
			for v := i; ; v++ {
				ping <- v
				if got := <-pong; got != v+1 {
					s.fail(fmt.Errorf("channel pair %d answers %d to %d", i, got, v))
				}
				time.Sleep(time.Duration(i+1) * time.Millisecond)
			}
		}()
	}
	var mu sync.Mutex
	shared := 0
	for range 4 {
		go func() {
			for t := time.NewTicker(3 * time.Millisecond); ; <-t.C {
				mu.Lock()
				shared++
				before := shared
				runtime.Gosched()
				if shared != before {
					s.fail(errors.New("the mutex let two in"))
				}
				mu.Unlock()
			}
		}()
	}
	go s.forever(context.Background())
	go s.clock()
	go s.loopback()
}

func (s *server) forever(ctx context.Context) {
	<-ctx.Done()
	s.fail(errors.New("the background context ended"))
}

// clock checks that the monotonic clock neither stands, nor goes back, nor leaps.
func (s *server) clock() {
	last := time.Now()
	for {
		time.Sleep(5 * time.Millisecond)
		now := time.Now()
		if d := now.Sub(last); d < 4*time.Millisecond || d > 20*time.Second {
			s.fail(fmt.Errorf("a sleep of 5 ms took %v", d))
		}
		last = now
	}
}

// loopback talks to itself over TCP for ever.
func (s *server) loopback() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.fail(err)
		return
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			s.fail(err)
			return
		}
		_, err = io.Copy(c, c)
		s.fail(fmt.Errorf("the echo ended: %w", err))
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		s.fail(err)
		return
	}
	buf := make([]byte, 64)
	for i := 0; ; i++ {
		text := fmt.Appendf(nil, "%064d", i)
		if _, err := c.Write(text); err != nil {
			s.fail(err)
			return
		}
		if _, err := io.ReadFull(c, buf); err != nil || string(buf) != string(text) {
			s.fail(fmt.Errorf("the echo of %s is %s, %w", text, buf, err))
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}
