package web

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is a cluster of one host and one workload.
type fake struct {
	mu    sync.Mutex
	moved []MoveRequest
	after []uint64
}

func (*fake) Hosts(context.Context) (any, error)       { return []string{"host1"}, nil }
func (*fake) Workloads(context.Context) (any, error)   { return []string{"w"}, nil }
func (*fake) Moves(context.Context, bool) (any, error) { return []string{}, nil }
func (*fake) Drains(context.Context) (any, error)      { return []string{}, nil }

func (f *fake) Events(ctx context.Context, after uint64, _ bool, tell func(uint64, any) error) error {
	f.mu.Lock()
	f.after = append(f.after, after)
	f.mu.Unlock()
	if err := tell(after+1, map[string]string{"text": "first"}); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Move(_ context.Context, req MoveRequest) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moved = append(f.moved, req)
	if req.To == "host9" {
		return nil, &Error{Status: http.StatusConflict, Text: "no", Obstacles: []string{"x"}}
	}
	return map[string]string{"id": "m-1"}, nil
}
func (*fake) Cancel(context.Context, CancelRequest) (any, error) { return nil, errors.New("down") }
func (*fake) Drain(context.Context, DrainRequest) (any, error)   { return nil, nil }
func (*fake) Undrain(context.Context, DrainRequest) (any, error) { return nil, nil }

type door struct {
	*testing.T
	h    *Handler
	f    *fake
	srv  *httptest.Server
	host string
}

func open(t *testing.T, readOnly bool) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{T: t, f: &fake{}, host: l.Addr().String()}
	if d.h, err = New(Config{Backend: d.f, Host: d.host, ReadOnly: readOnly}); err != nil {
		t.Fatal(err)
	}
	d.srv = &httptest.Server{Listener: l, Config: &http.Server{Handler: d.h}}
	d.srv.Start()
	t.Cleanup(d.srv.Close)
	return d
}

// do makes a request; headers are "name: value". Host is one of them.
func (d *door) do(method, path, body string, headers ...string) (*http.Response, string) {
	d.Helper()
	req, err := http.NewRequestWithContext(d.Context(), method, "http://"+d.host+path, strings.NewReader(body))
	if err != nil {
		d.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
		if name == "Host" {
			req.Host = value
		}
	}
	r, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		d.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		d.Fatal(err)
	}
	return r, string(b)
}

// login uses the link up and returns the cookie as a header.
func (d *door) login() string {
	d.Helper()
	r, body := d.do("GET", strings.TrimPrefix(d.h.Link(), "http://"+d.host), "", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate")
	if r.StatusCode != http.StatusOK || len(r.Cookies()) != 1 {
		d.Fatalf("login: %s, %s", r.Status, body)
	}
	c := r.Cookies()[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode {
		d.Errorf("the cookie is %v", c)
	}
	return "Cookie: " + c.Name + "=" + c.Value
}

// TestDoor: who may come in, and from where.
func TestDoor(t *testing.T) {
	d := open(t, false)
	link := strings.TrimPrefix(d.h.Link(), "http://"+d.host)
	if r, _ := d.do("GET", "/login?token=guess", ""); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("a guess: %s", r.Status)
	}
	cookie := d.login()
	if r, _ := d.do("GET", link, ""); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("the link once more: %s", r.Status)
	}
	if r, _ := d.do("GET", "/login?token=", ""); r.StatusCode != http.StatusUnauthorized {
		t.Errorf("no token, once it was used: %s", r.Status)
	}
	here, bearer := "Origin: http://"+d.host, "Authorization: Bearer "+d.h.Bearer()
	const js, move = "Content-Type: application/json", `{"workload":"w","to":"host2"}`
	for _, c := range []struct {
		what, method, path, body string
		headers                  []string
		want                     int
	}{
		{"no secret", "GET", "/", "", nil, 401},
		{"no secret, JSON", "GET", "/api/hosts", "", nil, 401},
		{"another cookie", "GET", "/api/hosts", "", []string{strings.Split(cookie, "=")[0] + "=x"}, 401},
		{"the page", "GET", "/", "", []string{cookie}, 200},
		{"hosts", "GET", "/api/hosts", "", []string{cookie}, 200},
		{"by its other name", "GET", "/api/hosts", "", []string{cookie, "Host: localhost:" + strings.Split(d.host, ":")[1]}, 200},
		{"DNS rebinding", "GET", "/api/hosts", "", []string{cookie, "Host: evil.example"}, 421},
		{"DNS rebinding, script", "GET", "/api/hosts", "", []string{bearer, "Host: evil.example"}, 421},
		{"a script of another site reads", "GET", "/api/hosts", "", []string{cookie, "Origin: http://evil.example"}, 403},
		{"an image of another site", "GET", "/api/hosts", "", []string{cookie, "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"}, 403},
		{"a sibling port", "GET", "/api/hosts", "", []string{cookie, "Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors"}, 403},
		{"move", "POST", "/api/move", move, []string{cookie, here, js}, 200},
		{"move without an origin", "POST", "/api/move", move, []string{cookie, js}, 403},
		{"move from another site", "POST", "/api/move", move, []string{cookie, "Origin: http://evil.example", js}, 403},
		{"move from a file", "POST", "/api/move", move, []string{cookie, "Origin: null", js}, 403},
		{"move from a sibling port", "POST", "/api/move", move, []string{cookie, "Origin: http://127.0.0.1:1", js}, 403},
		{"move, fetched across sites", "POST", "/api/move", move, []string{cookie, here, "Sec-Fetch-Site: cross-site", js}, 403},
		{"a form", "POST", "/api/move", "workload=w", []string{cookie, here, "Content-Type: text/plain"}, 415},
		{"what nobody knows", "POST", "/api/move", `{"pid":1}`, []string{cookie, here, js}, 400},
		{"too long", "POST", "/api/move", `{"workload":"` + strings.Repeat("x", maxBody) + `"}`, []string{cookie, here, js}, 400},
		{"refused", "POST", "/api/move", `{"workload":"w","to":"host9"}`, []string{cookie, here, js}, 409},
		{"the cluster is down", "POST", "/api/cancel", `{"id":"m-1"}`, []string{cookie, here, js}, 502},
		{"by GET", "GET", "/api/move", "", []string{cookie}, 404},
		{"a script", "POST", "/api/move", move, []string{bearer, js}, 200},
		{"a script with a guess", "POST", "/api/move", move, []string{"Authorization: Bearer x", js}, 403},
		{"a script with nothing", "GET", "/api/hosts", "", []string{"Authorization: Bearer "}, 401},
	} {
		r, body := d.do(c.method, c.path, c.body, c.headers...)
		if r.StatusCode != c.want && !(c.want == 404 && r.StatusCode == 405) {
			t.Errorf("%s: %s, want %d: %s", c.what, r.Status, c.want, body)
		}
		if p := r.Header.Get("Content-Security-Policy"); !strings.Contains(p, "default-src 'none'") || strings.Contains(p, "unsafe") || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: headers %v", c.what, r.Header)
		}
		if r.Header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: other sites are let in", c.what)
		}
	}
	if len(d.f.moved) != 3 {
		t.Errorf("moves: %v", d.f.moved)
	}
	if _, body := d.do("POST", "/api/move", `{"workload":"w","to":"host9"}`, bearer, js); body != `{"error":"no","obstacles":["x"]}`+"\n" {
		t.Errorf("a refusal reads %s", body)
	}
}

func TestReadOnly(t *testing.T) {
	d := open(t, true)
	cookie := d.login()
	if r, _ := d.do("POST", "/api/move", `{"workload":"w","to":"host2"}`, cookie, "Origin: http://"+d.host, "Content-Type: application/json"); r.StatusCode != http.StatusForbidden || len(d.f.moved) != 0 {
		t.Errorf("%s, %v", r.Status, d.f.moved)
	}
	if _, body := d.do("GET", "/api/session", "", cookie); body != `{"read_only":true}`+"\n" {
		t.Error(body)
	}
}

// TestStream: what there is comes first, events carry the index with which a browser resumes, and a stream ends with its request.
func TestStream(t *testing.T) {
	d := open(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+d.host+"/api/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+d.h.Bearer())
	req.Header.Set("Last-Event-ID", "41")
	r, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"event: hosts\ndata: [\"host1\"]": true, "event: history\ndata: []": true, "event: event\nid: 42\ndata: {\"text\":\"first\"}": true}
	in, part := bufio.NewScanner(r.Body), ""
	for len(want) > 0 && in.Scan() {
		if in.Text() != "" {
			part = strings.TrimPrefix(part+"\n"+in.Text(), "\n")
			continue
		}
		delete(want, part)
		part = ""
	}
	if len(want) > 0 {
		t.Errorf("not told: %v, %v", want, in.Err())
	}
	_ = r.Body.Close()
	for len(d.h.streams) > 0 && ctx.Err() == nil {
		time.Sleep(5 * time.Millisecond) // the server hears of it when its next write fails
	}
	if len(d.h.streams) > 0 {
		t.Error("the stream goes on without its page")
	}
	if r, _ := d.do("GET", "/api/stream", "", "Authorization: Bearer "+d.h.Bearer(), "Last-Event-ID: x"); r.StatusCode != http.StatusBadRequest {
		t.Errorf("no index: %s", r.Status)
	}
}

// TestStatic: the page brings all that it needs, and nothing that its policy would forbid.
func TestStatic(t *testing.T) {
	d := open(t, false)
	cookie := d.login()
	inline := regexp.MustCompile(`(?i)<script(?:[^>]*>[^<]|[^>]*src="(?:https?:)?//)|\son[a-z]+=|\sstyle=|<style|javascript:|innerHTML|insertAdjacentHTML|document\.write|\beval\(`)
	reference := regexp.MustCompile(`(?:src|href)="([^"]+)"|from "\./([^"]+)"`)
	seen := map[string]bool{}
	var look func(path string)
	look = func(path string) {
		if seen[path] {
			return
		}
		seen[path] = true
		r, body := d.do("GET", "/"+path, "", cookie)
		if r.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, r.Status)
		}
		if found := inline.FindString(body); found != "" {
			t.Errorf("%s has %q", path, found)
		}
		for _, m := range reference.FindAllStringSubmatch(body, -1) {
			look(m[1] + m[2])
		}
	}
	look("")
	for _, path := range []string{"app.js", "view.js", "style.css", "icon.svg"} {
		if !seen[path] {
			t.Errorf("%s is not used", path)
		}
	}
}
