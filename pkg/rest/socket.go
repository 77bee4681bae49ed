package rest

import "net/http"

type socket struct{}

func (k *socket) drop(such func(*Call) bool) {}

func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	s.refuse(w, Errorf(http.StatusNotImplemented, "no WebSocket yet"))
}
