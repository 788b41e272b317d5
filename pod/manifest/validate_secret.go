package manifest

import (
	"encoding/json"

	corev1 "k8s.io/api/core/v1"
)

func (c *checker) secret(s *corev1.Secret) {
	c.data("data", sizeOf(s.Data)+sizeOf(s.StringData), keysOf(s.Data), nil)
	c.data("stringData", 0, keysOf(s.StringData), nil)
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		c.credentials(s, corev1.DockerConfigJsonKey)
	case corev1.SecretTypeDockercfg:
		c.credentials(s, corev1.DockerConfigKey)
	}
}

// credentials wants a JSON object under key. What it holds is never told.
func (c *checker) credentials(s *corev1.Secret, key string) {
	value, ok := s.Data[key]
	at := "data[" + key + "]"
	if text, has := s.StringData[key]; has {
		value, ok, at = []byte(text), true, "stringData["+key+"]"
	}
	var object map[string]any
	switch {
	case !ok:
		c.fail("data", "needs the key %q for type %s", key, s.Type)
	case json.Unmarshal(value, &object) != nil:
		c.fail(at, "is not a JSON object, as type %s wants it", s.Type)
	}
}
