package admin

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"sync"
	"time"

	"culvert.dev/pkg/accesslog"
)

// mostLines is how many lines of the audit log are in memory, and mostTail how many bytes of an old file are read for them.
const (
	mostLines = 2000
	mostTail  = 1 << 20
)

// Audit keeps who has changed what, in a file of JSON lines that is rotated, and the last lines in memory. It may be used by
// several goroutines.
type Audit struct {
	log *accesslog.Log

	mu   sync.Mutex
	last []AuditLine // a ring, once it is full
	next int         // where the next line goes, then
}

// OpenAudit opens the file of c, and reads its last lines. Close ends it.
func OpenAudit(c accesslog.Config) (*Audit, error) {
	a := new(Audit)
	// The file before it has some as well, of which those that are left from the last rotation are enough.
	for _, name := range []string{c.Path + ".1", c.Path} {
		for _, line := range tail(name) {
			a.add(line)
		}
	}
	var err error
	if a.log, err = accesslog.Open(c); err != nil {
		return nil, err
	}
	return a, nil
}

// tail returns the last lines of a file, none if it cannot be read; those that are damaged are left out.
func tail(name string) (list []AuditLine) {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	from := max(info.Size()-mostTail, 0)
	b, err := io.ReadAll(io.NewSectionReader(f, from, mostTail))
	if err != nil {
		return nil
	}
	if from > 0 {
		_, b, _ = bytes.Cut(b, []byte("\n"))
	}
	for line := range bytes.Lines(b) {
		var one AuditLine
		if json.Unmarshal(line, &one) == nil && !one.Time.IsZero() {
			list = append(list, one)
		}
	}
	return list
}

func (a *Audit) add(line AuditLine) {
	if len(a.last) < mostLines {
		a.last = append(a.last, line)
		return
	}
	a.last[a.next] = line
	a.next = (a.next + 1) % mostLines
}

// Record keeps a line. If its Time is zero it is now.
func (a *Audit) Record(line AuditLine) {
	if line.Time.IsZero() {
		line.Time = time.Now().UTC().Truncate(time.Millisecond)
	}
	b, err := json.Marshal(line)
	if err != nil {
		panic("BUG: admin: " + err.Error()) // In is made by said
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.add(line)
	a.log.Write(append(b, '\n'))
}

// Last returns the last n lines that are in memory, the oldest first.
func (a *Audit) Last(n int) []AuditLine {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]AuditLine, 0, len(a.last))
	all = append(append(all, a.last[a.next:]...), a.last[:a.next]...)
	return all[max(len(all)-n, 0):]
}

// Reopen has the file opened anew, after somebody else has moved it.
func (a *Audit) Reopen() { a.log.Reopen() }

// Close writes what there is, and closes the file.
func (a *Audit) Close() error { return a.log.Close() }

// record keeps a line of somebody, nil if nobody knows of whom.
func (h *Handler) record(line AuditLine, who *caller) {
	if h.Audit == nil {
		return
	}
	if who != nil {
		line.Operator, line.Role, line.Token = who.Operator, who.Role.String(), who.Token
	}
	h.Audit.Record(line)
}
