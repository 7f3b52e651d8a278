// Package web is the dashboard: a page and HTTP/JSON for scripts, in front of whoever has the right to use the cluster already.
//
// It opens nothing by itself. `migrate dashboard` serves it on a loopback port and asks the cluster with the rights of the operator who has
// started it. Who knows a secret may come in: the link with a one-time token, which the first request changes into a cookie, or a bearer token
// for scripts. Every request must name this server as its host (a page of another site cannot, even when its name points here: DNS rebinding),
// and one that changes something must come from this page (Origin and Sec-Fetch-Site) or bring the bearer token. The pages have no inline
// script or style, load nothing from elsewhere, and their Content-Security-Policy says so.
//
// The page is told of changes by server-sent events: a stream holds a goroutine of its request, which ends with it; there are at most
// maxStreams.
package web

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

//go:embed static
var static embed.FS

// MoveRequest is what POST /api/move takes.
type MoveRequest struct {
	Workload      string  `json:"workload"`
	To            string  `json:"to"`
	MaxDowntimeMS float64 `json:"max_downtime_ms"` // 0: the default
}

// DrainRequest is what POST /api/drain and /api/undrain take.
type DrainRequest struct {
	Host        string `json:"host"`
	MaxParallel uint32 `json:"max_parallel"` // 0: the default
}

// CancelRequest is what POST /api/cancel takes.
type CancelRequest struct {
	ID string `json:"id"`
}

// Backend is the cluster, in the shapes of docs/json.md.
type Backend interface {
	Hosts(ctx context.Context) (any, error)
	Workloads(ctx context.Context) (any, error)
	// Moves is those that are under way; all: those that have ended, too, oldest first.
	Moves(ctx context.Context, all bool) (any, error)
	// Drains is how far the drains of hosts are.
	Drains(ctx context.Context) (any, error)
	// Events calls f with each event after an index, and goes on until ctx ends. newOnly: only with what is to come.
	Events(ctx context.Context, after uint64, newOnly bool, f func(index uint64, event any) error) error
	// The actions answer with what was begun. An *Error says why one was refused.
	Move(ctx context.Context, req MoveRequest) (any, error)
	Cancel(ctx context.Context, req CancelRequest) (any, error)
	Drain(ctx context.Context, req DrainRequest) (any, error)
	Undrain(ctx context.Context, req DrainRequest) (any, error)
}

// Error is an answer that is no success.
type Error struct {
	Status    int    `json:"-"` // of HTTP
	Text      string `json:"error"`
	Obstacles any    `json:"obstacles,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Config is what a Handler needs. Backend and Host have to be set.
type Config struct {
	Backend  Backend
	Host     string // address and port that it is served on, which is a loopback address
	ReadOnly bool   // refuse actions
	Log      *slog.Logger
}

// maxStreams bounds how many pages can watch at a time, maxBody what a request may bring, in bytes.
const (
	maxStreams = 16
	maxBody    = 64 << 10
)

// Handler serves the dashboard.
type Handler struct {
	c       Config
	hosts   map[string]bool // that requests may name
	cookie  string          // its name: cookies know no ports
	session string
	bearer  string
	mux     *http.ServeMux
	streams chan struct{}

	mu    sync.Mutex
	token string // empty once it was used
}

// New makes a Handler with new secrets.
func New(c Config) (*Handler, error) {
	_, port, err := net.SplitHostPort(c.Host)
	if err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	h := &Handler{c: c, hosts: map[string]bool{c.Host: true, "localhost:" + port: true}, cookie: "migrate-dashboard-" + port,
		session: rand.Text(), bearer: rand.Text(), token: rand.Text(), mux: http.NewServeMux(), streams: make(chan struct{}, maxStreams)}
	files, err := fs.Sub(static, "static")
	if err != nil {
		return nil, err
	}
	h.mux.Handle("GET /", http.FileServerFS(files))
	h.mux.HandleFunc("GET /api/stream", h.stream)
	for path, get := range map[string]func(context.Context) (any, error){
		"hosts": c.Backend.Hosts, "workloads": c.Backend.Workloads, "drains": c.Backend.Drains,
		"moves":   func(ctx context.Context) (any, error) { return c.Backend.Moves(ctx, false) },
		"history": func(ctx context.Context) (any, error) { return c.Backend.Moves(ctx, true) },
		"session": func(context.Context) (any, error) { return map[string]bool{"read_only": c.ReadOnly}, nil },
	} {
		h.mux.HandleFunc("GET /api/"+path, func(w http.ResponseWriter, r *http.Request) {
			v, err := get(r.Context())
			h.answer(w, v, err)
		})
	}
	h.mux.HandleFunc("POST /api/move", action(h, c.Backend.Move))
	h.mux.HandleFunc("POST /api/cancel", action(h, c.Backend.Cancel))
	h.mux.HandleFunc("POST /api/drain", action(h, c.Backend.Drain))
	h.mux.HandleFunc("POST /api/undrain", action(h, c.Backend.Undrain))
	return h, nil
}

// Link is the address to open in a browser, once.
func (h *Handler) Link() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return "http://" + h.c.Host + "/login?token=" + h.token
}

// Bearer is the token of scripts: Authorization: Bearer TOKEN.
func (h *Handler) Bearer() string { return h.bearer }

const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// ServeHTTP is http.Handler's.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Content-Security-Policy", policy)
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Cross-Origin-Resource-Policy", "same-origin")
	head.Set("Cross-Origin-Opener-Policy", "same-origin")
	head.Set("Cache-Control", "no-store")
	if !h.hosts[r.Host] {
		h.answer(w, nil, &Error{Status: http.StatusMisdirectedRequest, Text: "this server is " + h.c.Host + ", not what the request names"})
		return
	}
	script := same(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), h.bearer)
	if !script && !h.fromHere(r) {
		h.answer(w, nil, &Error{Status: http.StatusForbidden, Text: "the request comes from another site"})
		return
	}
	if r.URL.Path == "/login" {
		h.login(w, r)
		return
	}
	c, err := r.Cookie(h.cookie)
	if !script && (err != nil || !same(c.Value, h.session)) {
		h.answer(w, nil, &Error{Status: http.StatusUnauthorized, Text: "open the link that `migrate dashboard` has printed; it is good for one browser, once"})
		return
	}
	h.mux.ServeHTTP(w, r)
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// fromHere says whether a request of a browser was made by this page, or, if it changes nothing, by the user.
func (h *Handler) fromHere(r *http.Request) bool {
	origin, isHere := strings.CutPrefix(r.Header.Get("Origin"), "http://")
	isHere = isHere && origin == r.Host
	site := r.Header.Get("Sec-Fetch-Site")
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		navigation := r.Header.Get("Sec-Fetch-Mode") == "navigate"
		return (r.Header.Get("Origin") == "" || isHere) && (site == "" || site == "same-origin" || site == "none" || navigation && site == "cross-site")
	}
	return isHere && (site == "" || site == "same-origin")
}

// login changes the one-time token into a cookie. The page refreshes to the dashboard, instead of a redirection, so that the next request counts
// as made by this site, wherever the link was opened from.
func (h *Handler) login(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		h.answer(w, nil, &Error{Status: http.StatusMethodNotAllowed, Text: "GET only"})
		return
	}
	h.mu.Lock()
	ok := h.token != "" && same(r.URL.Query().Get("token"), h.token)
	if ok {
		h.token = ""
	}
	h.mu.Unlock()
	if !ok {
		h.answer(w, nil, &Error{Status: http.StatusUnauthorized, Text: "the link was used already, or is of another run: start `migrate dashboard` again"})
		return
	}
	http.SetCookie(w, &http.Cookie{Name: h.cookie, Value: h.session, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	w.Header().Set("Refresh", "0; url=/")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte("<!doctype html><html lang=en><title>migrate</title><p><a href=\"/\">The dashboard</a></p></html>\n"))
}

// answer writes JSON.
func (h *Handler) answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Status: http.StatusBadGateway, Text: err.Error()}
		}
		w.WriteHeader(e.Status)
		v = e
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		h.c.Log.Debug("an answer did not get through", "error", err)
	}
}

// action is the handler of what changes something.
func action[T any](h *Handler, do func(context.Context, T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if h.c.ReadOnly {
			h.answer(w, nil, &Error{Status: http.StatusForbidden, Text: "this dashboard only shows: it was started with --read-only"})
			return
		}
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			h.answer(w, nil, &Error{Status: http.StatusUnsupportedMediaType, Text: "the request is not application/json"})
			return
		}
		var req T
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			h.answer(w, nil, &Error{Status: http.StatusBadRequest, Text: "the request's JSON: " + err.Error()})
			return
		}
		h.c.Log.Info("an operator asks, in the browser or by HTTP", "path", r.URL.Path, "request", req)
		v, err := do(r.Context(), req)
		h.answer(w, v, err)
	}
}

// pace is how often a page hears of progress that is not in the log, and a proxy that it is still there.
const pace = 500 * time.Millisecond
