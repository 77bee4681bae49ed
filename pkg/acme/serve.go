package acme

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	maxWaiting = 256             // handshakes that wait for a certificate
	waitTime   = 6 * time.Second // for a certificate; visitors give up after some ten
)

// GetCertificate is for tls.Config. It blocks for some seconds while the first
// certificate of a name is on its way. A name that is none of ours gets neither a
// certificate nor an error, which crypto/tls answers with unrecognized_name.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ALPN {
		return m.alpnCertificate(hello.ServerName)
	}
	name := m.nameOf(hello.ServerName)
	if c := m.Certificate(name); c != nil {
		return c, nil
	}
	e := m.expect(name)
	if e == nil {
		return nil, nil
	}
	return m.wait(hello, name, e)
}

// nameOf is the name of a certificate for a handshake.
func (m *Manager) nameOf(serverName string) string {
	if serverName == "" {
		return m.cfg.Fallback
	}
	return strings.ToLower(strings.TrimSuffix(serverName, "."))
}

// Certificate returns the certificate for a server name, or nil if there is none now.
// It does not block.
func (m *Manager) Certificate(name string) *tls.Certificate {
	name = m.nameOf(name)
	m.mu.RLock()
	defer m.mu.RUnlock()
	if e := m.entries[name]; e != nil && e.certificate != nil && !(e.onDemand && e.stale()) {
		return e.certificate
	}
	if e := m.entries[wildcard(name)]; e != nil {
		return e.certificate
	}
	return nil
}

// stale reports whether it is time to note that somebody still asks. m.mu is held.
func (e *entry) stale() bool { return time.Since(e.asked) > 24*time.Hour }

// expect returns what a visitor of name may wait for: nil if that is nothing.
func (m *Manager) expect(name string) *entry {
	m.mu.RLock()
	e := m.entries[name]
	wild := m.entries[wildcard(name)]
	isStored := m.stored[name]
	m.mu.RUnlock()
	switch {
	case e != nil && e.wanted && !e.onDemand:
		return e
	case wild != nil && wild.wanted:
		return wild
	}
	demanded := m.cfg.OnDemand != nil && wildcard(name) != "" && m.cfg.OnDemand(name) == nil
	if !demanded && !isStored && e == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e = m.entries[name]
	if e == nil {
		if !isStored && (m.onDemand() >= maxOnDemand || !m.demands.Allow()) {
			m.log.Warn("certificates: too many names are asked for by visitors, so one gets no certificate now", "name", name)
			return nil
		}
		e = &entry{name: name}
		m.entries[name] = e
	}
	if demanded && !e.wanted {
		e.wanted, e.onDemand = true, true
	}
	e.asked = time.Now()
	if !e.busy && e.certificate == nil && !e.next.After(e.asked) {
		m.start(e)
	}
	return e
}

// onDemand counts the names that visitors have asked for. m.mu is held.
func (m *Manager) onDemand() (n int) {
	for _, e := range m.entries {
		if e.onDemand {
			n++
		}
	}
	return n
}

// wait waits for the certificate of e, while there is hope.
func (m *Manager) wait(hello *tls.ClientHelloInfo, name string, e *entry) (*tls.Certificate, error) {
	timer := time.NewTimer(waitTime)
	defer timer.Stop()
	m.mu.Lock()
	m.waiting++
	defer func() {
		m.waiting--
		m.mu.Unlock()
	}()
	if m.waiting > maxWaiting {
		return nil, errors.New("too many visitors wait for certificates")
	}
	// An attempt that has not begun is about to.
	for e.certificate == nil && (e.busy && e.done != nil || e.next.IsZero() && e.wanted) && !m.closed {
		if e.done == nil {
			m.start(e)
			continue
		}
		done := e.done
		m.mu.Unlock()
		var over bool
		select {
		case <-done:
		case <-timer.C:
			over = true
		case <-hello.Context().Done():
			over = true
		case <-m.ctx.Done():
			over = true
		}
		m.mu.Lock()
		if over {
			break
		}
	}
	if e.certificate != nil {
		return e.certificate, nil
	}
	if text := e.text(); text != "" {
		return nil, fmt.Errorf("there is no certificate for %s: %s", name, text)
	}
	return nil, fmt.Errorf("there is no certificate for %s yet", name)
}

// CertificateStatus is what there is to know of the certificate of a name.
type CertificateStatus struct {
	Name      string
	Directory string    // that it is from; "" without a certificate
	Issuer    string    // the common name of who has signed it
	Expires   time.Time // zero: there is no certificate
	Renews    time.Time // when it is to be renewed
	OnDemand  bool      // because a visitor has asked for it
	Busy      bool      // it is being worked on

	// Failures counts the attempts that failed since the last one that did not.
	// Err says why the last one did, NextTry when the next is due.
	Failures int
	Err      string
	NextTry  time.Time
}

// Status returns the certificates that are managed, by name.
func (m *Manager) Status() []CertificateStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := []CertificateStatus{}
	for _, e := range m.entries {
		if !e.wanted {
			continue
		}
		s := CertificateStatus{Name: e.name, OnDemand: e.onDemand, Busy: e.busy, Failures: e.Failures, Err: e.text()}
		if c := e.certificate; c != nil {
			s.Directory, s.Issuer, s.Expires, s.Renews = e.authority, c.Leaf.Issuer.CommonName, c.Leaf.NotAfter, e.renews
		}
		if s.Err != "" {
			s.NextTry = e.next
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b CertificateStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}
