package onvif

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// Bounds of a document.
const (
	maxDepth = 64
	maxNodes = 16 << 10
)

// node is an element of a document. Names are without their namespaces: devices have those right less often than
// the names themselves.
type node struct {
	name  string
	attrs []xml.Attr
	text  strings.Builder
	kids  []*node
}

var errBounds = errors.New("its answer is too deep or has too many elements")

// parse reads a document. Entities other than those of XML itself are an error, so that nothing in it grows.
func parse(b []byte) (*node, error) {
	d := xml.NewDecoder(bytes.NewReader(b))
	// Some devices declare the charset of their country, and write ASCII.
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }
	root := &node{}
	path := []*node{root}
	for nodes := 0; ; {
		t, err := d.RawToken()
		if err == io.EOF {
			if len(root.kids) == 0 || len(path) != 1 {
				return nil, errors.New("its answer has no end")
			}
			return root, nil
		}
		if err != nil {
			return nil, err
		}
		top := path[len(path)-1]
		switch t := t.(type) {
		case xml.StartElement:
			if nodes++; nodes > maxNodes || len(path) > maxDepth {
				return nil, errBounds
			}
			n := &node{name: t.Name.Local, attrs: t.Copy().Attr}
			top.kids = append(top.kids, n)
			path = append(path, n)
		case xml.EndElement:
			if len(path) == 1 || t.Name.Local != top.name {
				return nil, errors.New("the elements of its answer do not match")
			}
			path = path[:len(path)-1]
		case xml.CharData:
			top.text.Write(t)
		}
	}
}

// all returns the elements below n that a path of names leads to, each the direct child of the one before, and the
// first one anywhere.
func (n *node) all(path ...string) []*node {
	var found []*node
	var below func(n *node)
	below = func(n *node) {
		for _, k := range n.kids {
			if k.name == path[0] {
				found = append(found, k.direct(path[1:])...)
			} else {
				below(k)
			}
		}
	}
	below(n)
	return found
}

func (n *node) direct(path []string) []*node {
	if len(path) == 0 {
		return []*node{n}
	}
	var found []*node
	for _, k := range n.kids {
		if k.name == path[0] {
			found = append(found, k.direct(path[1:])...)
		}
	}
	return found
}

// value returns the text of the first of them.
func (n *node) value(path ...string) string {
	if all := n.all(path...); len(all) > 0 {
		return strings.TrimSpace(all[0].text.String())
	}
	return ""
}

func (n *node) attr(name string) string {
	for _, a := range n.attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// escape returns s as text of an element.
func escape(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s))
	return b.String()
}
