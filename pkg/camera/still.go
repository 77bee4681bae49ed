package camera

import (
	"bytes"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpmjpeg"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/pion/rtp"
)

// Still takes one picture that needs no other one out of a stream.
type Still struct {
	// Format is what the picture is in: "mjpeg" for JPEG, or "h264" or "hevc" for an elementary stream with the parameter
	// sets and one access unit.
	Format string

	picture videoFormat
	jpeg    rtpmjpeg.Decoder
}

// NewStill returns nil if there is no such picture in a track of that format.
func NewStill(f format.Format) *Still {
	switch f := f.(type) {
	case *format.MJPEG:
		return &Still{Format: "mjpeg"}
	case *format.H264:
		return &Still{Format: "h264", picture: newVideoFormat(f)}
	case *format.H265:
		return &Still{Format: "hevc", picture: newVideoFormat(f)}
	}
	return nil
}

// RTP takes a packet, and returns the picture as soon as there is one. It keeps nothing of p.
func (s *Still) RTP(p *rtp.Packet) (picture []byte) {
	if !survives(func() { picture = s.take(p) }) {
		return nil
	}
	return picture
}

func (s *Still) take(p *rtp.Packet) []byte {
	if len(p.Payload) == 0 {
		return nil
	}
	q := *p
	q.Payload = bytes.Clone(p.Payload)
	if s.picture == nil {
		b, err := s.jpeg.Decode(&q)
		if err != nil {
			return nil
		}
		return b
	}
	au, err := s.picture.decode(&q)
	if err != nil {
		return nil
	}
	au = withoutEmpty(au)
	s.picture.learn(au)
	if !s.picture.isKey(au) || s.picture.codec() == nil {
		return nil
	}
	b, err := h264.AnnexB(append(s.picture.sets(), au...)).Marshal() // the same for both
	if err != nil {
		return nil
	}
	return b
}

// withoutEmpty drops NAL units that have nothing in them.
func withoutEmpty(au [][]byte) [][]byte {
	some := au[:0]
	for _, nalu := range au {
		if len(nalu) > 0 {
			some = append(some, nalu)
		}
	}
	return some
}
