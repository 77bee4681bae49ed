package public

// place is where a P, which embeds it, is in a list, so that it can be taken out from anywhere.
type place[P any] struct{ before, after P }

func (p *place[P]) links() *place[P] { return p }

type placed[P any] interface {
	comparable
	links() *place[P]
}

// push puts v in front of the list that begins with *first.
func push[P placed[P]](first *P, v P) {
	var none P
	p := v.links()
	if p.after = *first; p.after != none {
		p.after.links().before = v
	}
	*first = v
}

// take takes v out of the list that begins with *first.
func take[P placed[P]](first *P, v P) {
	var none P
	p := v.links()
	if p.before != none {
		p.before.links().after = p.after
	} else {
		*first = p.after
	}
	if p.after != none {
		p.after.links().before = p.before
	}
	*p = place[P]{}
}
