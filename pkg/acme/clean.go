package acme

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

const (
	cleanTime = 24 * time.Hour      // between two cleanings
	keepTime  = 14 * 24 * time.Hour // of a certificate that has expired, or of a failure that nobody has tried to mend
)

// clean forgets what nobody will want, once a day.
func (m *Manager) clean() {
	timer := time.NewTimer(time.Minute)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-m.ctx.Done():
			return
		}
		timer.Reset(cleanTime)
		ctx, cancel := context.WithTimeout(m.ctx, attemptTime)
		if err := m.cleanNow(ctx, time.Now()); err != nil && m.ctx.Err() == nil {
			m.log.Warn("certificates: the store could not be cleaned", "err", err)
		}
		cancel()
	}
}

func (m *Manager) cleanNow(ctx context.Context, now time.Time) error {
	m.mu.Lock()
	for name, e := range m.entries {
		if !e.wanted && !e.busy && (e.certificate == nil || now.After(e.certificate.Leaf.NotAfter)) {
			delete(m.entries, name)
		}
	}
	m.mu.Unlock()
	return errors.Join(
		certmagic.CleanStorage(ctx, m.store, certmagic.CleanStorageOptions{
			Logger: zap.New(bridge{m.log}), ExpiredCerts: true, ExpiredCertGracePeriod: keepTime,
		}),
		m.cleanOld(ctx, "retry", func(b []byte) bool {
			var r record
			return json.Unmarshal(b, &r) != nil || now.Sub(r.Next) > keepTime
		}),
		// Of a relay that died while it was waiting for an authority.
		m.cleanOld(ctx, "challenges", func(b []byte) bool {
			var s shownChallenge
			return json.Unmarshal(b, &s) != nil || now.Sub(s.Since) > challengeOld
		}),
	)
}

// cleanOld deletes the values below prefix that are old.
func (m *Manager) cleanOld(ctx context.Context, prefix string, old func([]byte) bool) error {
	keys, err := m.store.List(ctx, prefix, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, key := range keys {
		if i, statErr := m.store.Stat(ctx, key); statErr != nil || !i.IsTerminal {
			continue
		}
		if b, loadErr := m.store.Load(ctx, key); loadErr == nil && old(b) {
			err = errors.Join(err, m.store.Delete(ctx, key))
		}
	}
	return err
}
