package tftpd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

const (
	maxListing  = 10000 // names of a folder that are looked through; the others are found as they are written only
	maxListings = 50000 // names that are remembered
)

// lookUp returns how the file that a client calls name is called in the folder. What is not there in any case keeps its name.
func (f *Folder) lookUp(name string) (string, error) {
	if _, err := f.Root.Lstat(name); err == nil {
		return name, nil
	}
	found := "."
	elements := strings.Split(name, "/")
	for i, e := range elements {
		_, err := f.Root.Lstat(path.Join(found, e))
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			if e, err = f.names.find(f.Root, found, e); err != nil {
				return "", err
			}
			if e == "" {
				return path.Join(found, path.Join(elements[i:]...)), nil
			}
		default:
			return "", err
		}
		found = path.Join(found, e)
	}
	return found, nil
}

// listings remembers which names are in folders, without their case.
type listings struct {
	mu      sync.Mutex // one folder is read at a time, and who waits for that need not read it again
	folders map[string]*listing
	names   int // in all of them
}

type listing struct {
	version string
	began   time.Time         // to be read
	names   map[string]string // folded: as it is. Of several it is the first in order
}

// find returns the name in a folder that is like this one but for its case, or "".
func (s *listings) find(root *os.Root, folder, name string) (string, error) {
	came := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := root.Stat(folder)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", nil
	}
	now := time.Now()
	v, settled := version(info, now)
	l := s.folders[folder]
	if l == nil || !(l.version == v && settled) && !l.began.After(came) {
		if l, err = list(root, folder, v, maxListing); err != nil {
			return "", err
		}
		l.began = now
		s.keep(folder, l)
	}
	return l.names[fold(name)], nil
}

func (s *listings) keep(folder string, l *listing) {
	if old := s.folders[folder]; old != nil {
		s.names -= len(old.names) + 1
	}
	if s.names+len(l.names)+1 > maxListings || s.folders == nil {
		s.folders, s.names = make(map[string]*listing), 0
	}
	s.folders[folder] = l
	s.names += len(l.names) + 1
}

// list reads a folder, as far as the bound.
func list(root *os.Root, folder, version string, most int) (*listing, error) {
	dir, err := root.OpenFile(folder, os.O_RDONLY|openFlags, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	l := &listing{version: version, names: make(map[string]string)}
	for n := 0; n < most; {
		names, err := dir.Readdirnames(min(1000, most-n))
		n += len(names)
		for _, name := range names {
			if is, ok := l.names[fold(name)]; (!ok || name < is) && !isTemp(name) {
				l.names[fold(name)] = name
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}

// fold makes names equal that strings.EqualFold says are.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for s := unicode.SimpleFold(r); s != r; s = unicode.SimpleFold(s) {
			least = min(least, s)
		}
		return least
	}, name)
}
