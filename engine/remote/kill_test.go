package remote

func tracerMain()   {}
func goTargetMain() {}
