package public

func (v *visitor) link() {}
