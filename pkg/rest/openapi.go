package rest

import "net/http"

func (s *Server) document(t *table) []byte { return []byte("{}\n") }

func (s *Server) serveDocs(w http.ResponseWriter, r *http.Request, path string) {
	s.refuse(w, Errorf(http.StatusNotImplemented, "no document yet"))
}
